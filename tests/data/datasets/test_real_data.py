"""The readers on real, published data: counts and traps that were found in these files."""

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets import get_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.open import open_dataset, open_table
from fed_diffmic.errors import DataError
from tests.data.published import codes, one


def load(shared: Path, folder: str, name: str = "table", **options):
    findings = Findings()
    cfg = DatasetConfig(name=name, root=str(shared / "data" / folder), **options)
    return get_dataset(name)(cfg, findings), findings


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def opened(shared: Path, cache_dir: str, folder: str, side: int, name: str = "table", **options):
    cfg = DatasetConfig(name=name, root=str(shared / "data" / folder), cache_dir=cache_dir, **options)
    return open_dataset(cfg, side, findings_path=None)


def test_ham10000_institutions_and_their_class_mixes(shared):
    manifest, findings = load(shared, "ham10000", "ham10000", on_bad_image="skip")
    assert len(manifest) == 5984
    assert manifest.table["group"].nunique() == 5984
    assert codes(findings) == {"missing-image": "warning"}
    assert one(findings, "missing-image").count == 10015 - 5984
    assert "4031 of 10015" in one(findings, "missing-image").message
    nevi = manifest.labels == manifest.classes.index("nv")
    share = {
        name: nevi[(manifest.table["institution"] == name).to_numpy()].mean()
        for name in set(manifest.table["institution"])
    }
    assert {name: round(100 * value) for name, value in share.items()} == {
        "vidir_molemax": 94,
        "rosendahl": 34,
        "vidir_modern": 55,
        "vienna_dias": 77,
    }


def test_ham10000_without_skip_is_one_clear_error(shared):
    _, findings = load(shared, "ham10000", "ham10000")
    with pytest.raises(DataError) as caught:
        findings.raise_if_errors()
    assert "4031 of 10015 images that the table names are not under dataset.root, 5984 are" in str(caught.value)
    assert "dataset.on_bad_image=skip" in str(caught.value)
    assert "ISIC_" not in str(caught.value)


def test_the_whole_ham10000_table_has_four_institutions_and_nine_lesions_seen_at_two(shared, tmp_path):
    """All 10,015 rows, with empty files in the place of the images."""
    source = shared / "data" / "ham10000"
    text = (source / "HAM10000_metadata.csv").read_text()
    (tmp_path / "HAM10000_metadata.csv").write_text(text)
    for line in text.splitlines()[1:]:
        (tmp_path / f"{line.split(',')[1]}.jpg").touch()
    findings = Findings()
    manifest = get_dataset("ham10000")(DatasetConfig(name="ham10000", root=str(tmp_path)), findings)
    assert len(findings) == 0
    assert Counter(manifest.table["institution"]) == {
        "vidir_molemax": 3954,
        "vidir_modern": 3363,
        "rosendahl": 2259,
        "vienna_dias": 439,
    }
    assert manifest.table["group"].nunique() == 7470
    seen_at = manifest.table.groupby("group")["institution"].nunique()
    assert int((seen_at > 1).sum()) == 9


def test_the_published_split_of_ham10000_shares_938_lesions(shared):
    manifest, findings = load(shared, "ham10000", "ham10000", on_bad_image="skip", split="published")
    leak = one(findings, "published-split-leak")
    assert (leak.severity, leak.count) == ("warning", 938)
    assert "938 of 7470 lesions" in leak.message
    assert set(codes(findings)) == {"published-split-leak", "missing-image"}, "the labels of both files agree"
    assert Counter(manifest.table["split"]) == {"train": 4182, "test": 1802}


def test_the_published_split_of_ham10000_with_another_label_is_noticed(shared, tmp_path):
    source = shared / "data" / "ham10000"
    (tmp_path / "HAM10000_metadata.csv").write_text((source / "HAM10000_metadata.csv").read_text())
    lines = (source / "diffmic_split.csv").read_text().splitlines()
    name, label, split = lines[6].split(",")
    lines[6] = f"{name},{(int(label) + 1) % 7},{split}"
    (tmp_path / "diffmic_split.csv").write_text("\n".join(lines))
    os.symlink(source / "images", tmp_path / "images")
    findings = Findings()
    cfg = DatasetConfig(name="ham10000", root=str(tmp_path), on_bad_image="skip", split="published")
    get_dataset("ham10000")(cfg, findings)
    assert one(findings, "split-label-mismatch").rows == (7,)


def test_aptos2019_all_grades_no_images(shared):
    manifest, findings = load(shared, "aptos2019", "aptos2019", on_bad_image="skip")
    assert len(manifest) == 0
    assert one(findings, "no-images").severity == "error"
    assert one(findings, "no-images").count == 3662


def test_aptos2019_with_images_in_place(shared, tmp_path):
    source = shared / "data" / "aptos2019"
    for name in ("train.csv", "diffmic_split.csv"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "train_images").mkdir()
    for line in (source / "train.csv").read_text().splitlines()[1:]:
        (tmp_path / "train_images" / f"{line.split(',')[0]}.png").touch()
    findings = Findings()
    manifest = get_dataset("aptos2019")(
        DatasetConfig(name="aptos2019", root=str(tmp_path), split="published"), findings
    )
    assert manifest.class_counts().tolist() == [1805, 370, 999, 193, 295]
    assert Counter(manifest.table["split"]) == {"train": 2564, "test": 1098}
    assert codes(findings) == {"no-groups": "warning"}


def test_chestxray14_labels_of_few_patients(shared):
    manifest, findings = load(shared, "chestxray14", "chestxray14", on_bad_image="skip")
    assert len(manifest) == 1000
    assert manifest.table["group"].nunique() == 264
    assert one(findings, "missing-image").count == 112120 - 1000
    patients = {
        name: manifest.table["group"][manifest.labels[:, i] == 1].nunique() for i, name in enumerate(manifest.classes)
    }
    assert patients["Hernia"] == 2
    assert patients["Edema"] == 5


def test_chestxray14_lists_hold_every_row_and_no_patient_twice(shared):
    start = time.process_time()
    manifest, findings = load(shared, "chestxray14", "chestxray14", on_bad_image="skip", split="published")
    assert time.process_time() - start < 12, "a loop over 112,120 rows with pandas takes longer by far"
    assert Counter(manifest.table["split"]) == {"train": 725, "val": 94, "test": 181}
    assert set(codes(findings)) == {"missing-image", "split-label-mismatch"}
    unlike = [f for f in findings if f.code == "split-label-mismatch"]
    assert {f.severity for f in unlike} == {"warning"}
    assert sum(f.count for f in unlike) == 181, "images whose label NIH revised after the lists were made"


def test_chestxray14_rgba_images_are_read(shared, cache_dir):
    data = opened(shared, cache_dir, "chestxray14", 64, "chestxray14", on_bad_image="skip")
    assert data.cache.bad == {}
    modes = np.array([Image.open(path).mode for path in data.manifest.table["image"]])
    assert (modes == "RGBA").sum() == 21
    images = data.cache.images(data.manifest.table["row"].to_numpy()).float()
    assert images.shape == (1000, 3, 64, 64)
    rgba, grey = images[modes == "RGBA"], images[modes != "RGBA"]
    assert abs(float(rgba.mean()) - float(grey.mean())) < 40
    assert float(rgba.std()) > 20
    assert codes(data.findings) == {"missing-image": "warning"}


def test_idrid_duplicates(shared, cache_dir):
    data = opened(shared, cache_dir, "fundus_idrid", 64, task="ordinal")
    assert data.manifest.classes == ("0", "1", "2", "3", "4")
    torn = one(data.findings, "contradicting-labels")
    assert {Path(name).stem[-3:] for name in torn.names} == {"021", "391", "028", "327"}
    assert len(data.manifest) == 413 - 4
    tied = one(data.findings, "duplicate-images")
    assert {Path(name).stem[-3:] for name in tied.names} == {"045", "333", "073", "375", "079", "279"}
    assert data.manifest.table["group"].nunique() == 409 - 3
    assert not data.findings.errors


def test_busi_one_image_under_two_labels(shared, cache_dir):
    data = opened(shared, cache_dir, "ultrasound_busi", 64)
    torn = one(data.findings, "contradicting-labels")
    assert sorted(Path(name).stem for name in torn.names) == ["benign_433", "malignant_145"]
    assert dict(zip(data.manifest.classes, data.manifest.class_counts().tolist(), strict=True)) == {
        "benign": 354,
        "malignant": 161,
        "normal": 107,
    }


def test_chest_pneumonia_by_patient(shared, cache_dir):
    data = opened(shared, cache_dir, "chest_pneumonia", 64)
    assert len(data.manifest) == 857
    assert data.manifest.table["group"].nunique() == 851
    assert len(data.findings) == 0


def test_a_chest_model_is_evaluated_on_a_plain_table(shared, cache_dir):
    """Labels of another table: 'No Finding' is an image without any of the model's labels."""
    classes = ("Effusion", "Pneumonia")
    file = shared / "data" / "chest_pneumonia" / "manifest.csv"
    data = open_table(file, classes, "multilabel", 64, cache_dir)
    assert data.manifest.class_counts().tolist() == [0, 228]
    assert int((data.manifest.labels.sum(axis=1) == 0).sum()) == 629
