"""Phantoms: the same request gives the same folder, groups and sites hold, nothing is overwritten."""

import itertools
import json
import multiprocessing
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets import get_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.phantoms import LAYOUTS, MARKER, draw, write_phantoms
from fed_diffmic.data.phantoms import writer as module
from fed_diffmic.data.phantoms.canvas import Style, site_style
from fed_diffmic.errors import ConfigError, DataError, MachineError

MODALITIES = sorted(LAYOUTS)


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(folder, modality: str, **options):
    name = LAYOUTS[modality][0]
    findings = Findings()
    manifest = get_dataset(name)(DatasetConfig(name=name, root=str(folder), **options), findings)
    findings.raise_if_errors()
    return manifest


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_published_reader_reads_them(modality, tmp_path):
    manifest = read(write_phantoms(tmp_path / "p", modality, 60, 0, side=32), modality)
    assert len(manifest) == 60
    counts = manifest.class_counts()
    assert counts.min() >= (2 if modality == "chest" else 60 // len(counts) - 6)
    sizes = Counter(Counter(manifest.table["group"]).values())
    assert (max(sizes) > 1) == (modality in ("dermoscopy", "chest"))
    for path in manifest.table["image"]:
        with Image.open(path) as image:
            assert image.size == (32, 32)


@pytest.mark.parametrize("modality", ["dermoscopy", "fundus", "chest"])
def test_their_published_split_is_by_group(modality, tmp_path):
    manifest = read(write_phantoms(tmp_path / "p", modality, 60, 0, side=16), modality, split="published")
    assert set(manifest.table["split"]) == {"train", "test"}
    assert (manifest.table.groupby("group")["split"].nunique() == 1).all()


def test_chest_comes_in_every_form_of_the_published_set(tmp_path):
    out = write_phantoms(tmp_path / "p", "chest", 50, 0, side=16)
    modes = Counter(Image.open(p).mode for p in out.rglob("*.png"))
    assert set(modes) == {"L", "RGBA", "I;16"}
    assert read(out, "chest", no_finding=True).class_counts()[-1] > 5


def test_institutions_follow_the_layout_and_keep_lesions_whole(tmp_path):
    table = read(write_phantoms(tmp_path / "p", "dermoscopy", 80, 0, sites=5, side=16), "dermoscopy").table
    names = {"vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias", "institution_5"}
    assert set(table["institution"]) == names
    assert (table.groupby("group")["institution"].nunique() == 1).all()
    assert table["institution"].value_counts().min() >= 10


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_same_request_gives_the_same_bytes_and_another_seed_others(modality, tmp_path):
    first, again, other = (
        contents(write_phantoms(tmp_path / name, modality, 18, seed, side=24))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    images = [{v for k, v in found.items() if k.endswith(("png", "jpg"))} for found in (first, other)]
    assert len(images[0]) == 18 and not images[0] & images[1]


def test_an_equal_request_is_reused(tmp_path, monkeypatch):
    write_phantoms(tmp_path / "p", "fundus", 16, 0, side=16)
    monkeypatch.setattr(module, "_write", lambda *a: pytest.fail("drawn a second time"))
    before = contents(tmp_path / "p")
    write_phantoms(tmp_path / "p", "fundus", 16, 0, side=16)
    assert contents(tmp_path / "p") == before


def test_anything_else_is_not_overwritten(tmp_path):
    write_phantoms(tmp_path / "p", "fundus", 16, 0, side=16)
    before = contents(tmp_path / "p")
    with pytest.raises(DataError, match=r"differs in seed, shuffle_labels"):
        write_phantoms(tmp_path / "p", "fundus", 16, 1, shuffle_labels=True, side=16)
    assert contents(tmp_path / "p") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not overwritten"):
        write_phantoms(tmp_path / "mine", "fundus", 16, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises((DataError, MachineError)):
        write_phantoms(tmp_path / "file", "fundus", 16, 0)
    (tmp_path / "p" / MARKER).write_text(json.dumps([1]))
    with pytest.raises(DataError, match="another request"):
        write_phantoms(tmp_path / "p", "fundus", 16, 0, side=16)


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "p").mkdir()
    assert len(contents(write_phantoms(tmp_path / "p", "ultrasound", 4, 0, side=16))) == 6


def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch):
    calls = iter(range(3))

    def stop(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(module, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "p", "fundus", 16, 0)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def _write(folder):
    write_phantoms(folder, "ultrasound", 30, 0, side=32)


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: fork beside other threads; no torch runs there
        running = [context.Process(target=_write, args=(tmp_path / "p",)) for _ in range(3)]
        for process in running:
            process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    assert len(contents(tmp_path / "p")) == 32


@pytest.mark.parametrize("modality", ["dermoscopy", "chest"])
def test_shuffled_labels_are_the_same_images_under_exchanged_labels(modality, tmp_path):
    plain = read(write_phantoms(tmp_path / "p", modality, 120, 0, side=16), modality)
    mixed = read(write_phantoms(tmp_path / "m", modality, 120, 0, side=16, shuffle_labels=True), modality)
    images = {name: v for name, v in contents(tmp_path / "p").items() if name.endswith(("png", "jpg"))}
    assert images == {name: v for name, v in contents(tmp_path / "m").items() if name.endswith(("png", "jpg"))}
    assert mixed.table["group"].tolist() == plain.table["group"].tolist()
    same = np.mean([a == b for a, b in zip(plain.table["label"], mixed.table["label"], strict=True)])
    assert same < 0.35
    labels = mixed.table.groupby("group")["label"].nunique()
    assert (labels == 1).all()  # a lesion or patient keeps one label: the leak that groups guard against stays


@pytest.mark.parametrize("modality", MODALITIES)
def test_sites_look_different_and_a_second_image_is_of_the_same_subject(modality):
    label = frozenset({"Mass"}) if modality == "chest" else 1

    def picture(site=0, subject=1, view=2):
        generators = (np.random.default_rng(s) for s in (subject, view))
        return draw(modality, label, site_style(site), *generators, side=64).astype(float)

    first = picture()
    assert first.shape == (64, 64, 3)
    assert (picture() == first).all()
    assert np.abs(picture(view=3) - first).mean() > 0.5
    pictures = [picture(site=s)[first.sum(axis=2) > 30] for s in range(4)]
    differences = [np.abs(a - b).mean() for a, b in itertools.combinations(pictures, 2)]
    assert min(differences) > 3 and max(differences) > 12
    if modality == "chest":
        assert np.abs(picture(view=3) - first).mean() < np.abs(picture(subject=5) - first).mean()


def test_styles_are_within_bounds_for_any_number_of_sites():
    for site in range(200):
        style = site_style(site)
        assert 0.8 < style.gain < 1.2 and 0.8 <= style.contrast <= 1.2 and 0.8 <= style.gamma <= 1.2
        assert all(0.9 < c < 1.1 for c in style.cast) and 0 < style.noise < 0.03


def test_wrong_requests(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.modality=mri"):
        write_phantoms(tmp_path / "p", "mri", 16, 0)
    with pytest.raises(ConfigError):
        write_phantoms(tmp_path / "p", "fundus", 0, 0)
    with pytest.raises(ValueError, match="no phantoms"):
        draw("mri", 0, Style(), np.random.default_rng(0), np.random.default_rng(0))


def test_none_stands_for_dermoscopy(tmp_path):
    assert (write_phantoms(tmp_path / "p", "none", 16, 0, side=16) / "HAM10000_metadata.csv").is_file()
