"""Phantoms through every reader."""

import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets.phantoms import read
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.open import open_dataset
from fed_diffmic.data.phantoms import write_phantoms
from fed_diffmic.errors import ConfigError, DataError
from tests.data.published import codes


def load(root, **options):
    findings = Findings()
    return read(
        DatasetConfig(name="phantoms", root=root and str(root), phantom_images=40, **options), findings
    ), findings


@pytest.mark.parametrize(
    ("modality", "task", "classes", "institutions", "groups_known"),
    [
        ("none", "multiclass", 7, 4, True),
        ("dermoscopy", "multiclass", 7, 4, True),
        ("fundus", "ordinal", 5, 1, False),
        ("chest", "multilabel", 14, 1, True),
        ("ultrasound", "ordinal", 4, 1, False),
    ],
)
def test_drawn_where_nothing_is_and_read_in_their_layout(tmp_path, modality, task, classes, institutions, groups_known):
    root = tmp_path / "new" / "phantoms"
    manifest, findings = load(root, modality=modality)
    assert len(manifest) == 40
    assert (manifest.name, manifest.task, len(manifest.classes)) == ("phantoms", task, classes)
    assert manifest.table["institution"].nunique() == institutions
    assert not findings.errors
    assert ("no-groups" in codes(findings)) != groups_known
    again, _ = load(root, modality=modality)
    assert again.digest() == manifest.digest()


def test_every_phantom_can_be_decoded(tmp_path):
    cfg = DatasetConfig(
        name="phantoms", root=str(tmp_path / "p"), modality="chest", phantom_images=60, cache_dir=str(tmp_path / "c")
    )
    data = open_dataset(cfg, 48, findings_path=None)
    assert len(data.manifest) == 60
    assert data.cache.bad == {}
    assert not data.findings.errors


def test_the_published_split_of_phantoms_is_by_group(tmp_path):
    for modality in ("dermoscopy", "fundus", "chest"):
        manifest, findings = load(tmp_path / modality, modality=modality, split="published")
        assert set(manifest.table["split"]) == {"train", "test"}
        assert "published-split-leak" not in codes(findings)


def test_what_was_drawn_before_is_read_as_it_is(tmp_path):
    write_phantoms(tmp_path / "p", "fundus", 20, seed=7)
    assert len(load(tmp_path / "p", modality="fundus")[0]) == 20


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        load(None)
    load(tmp_path / "p", modality="fundus")
    with pytest.raises(DataError, match="another modality than chest"):
        load(tmp_path / "p", modality="chest")
    (tmp_path / "patients").mkdir()
    (tmp_path / "patients" / "anna.png").write_bytes(b"x")
    with pytest.raises(DataError):
        load(tmp_path / "patients")
    assert [path.name for path in (tmp_path / "patients").iterdir()] == ["anna.png"]
