"""APTOS 2019: five ordered grades."""

import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets.aptos2019 import read
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, DataError
from tests.data.published import one, write_table


def load(root, **options):
    findings = Findings()
    return read(DatasetConfig(name="aptos2019", root=str(root), **options), findings), findings


@pytest.fixture
def root(tmp_path):
    for folder in ("train_images", "test_images"):
        (tmp_path / folder).mkdir()
        for name in ("aa", "bb", "cc"):
            (tmp_path / folder / f"{name}.png").write_bytes(b"x")
    write_table(tmp_path / "train.csv", ["id_code", "diagnosis"], [["aa", 2], ["bb", 0], ["cc", 4]])
    return tmp_path


def test_grades_images_and_unknown_patients(root):
    manifest, findings = load(root)
    assert manifest.task == "ordinal"
    assert manifest.classes == ("0", "1", "2", "3", "4")
    assert manifest.labels.tolist() == [2, 0, 4]
    assert all("train_images" in path for path in manifest.table["image"])
    assert manifest.table["group"].tolist() == [f"image:train_images/{name}.png" for name in ("aa", "bb", "cc")]
    assert one(findings, "no-groups").count == 3
    assert not findings.errors


def test_images_anywhere_when_there_is_no_train_images(tmp_path):
    (tmp_path / "resized" / "x").mkdir(parents=True)
    (tmp_path / "resized" / "x" / "aa.jpg").write_bytes(b"x")
    write_table(tmp_path / "train.csv", ["id_code", "diagnosis"], [["aa", 2]])
    assert len(load(tmp_path)[0]) == 1


def test_named_grades(root):
    names = ["none", "mild", "moderate", "severe", "proliferative"]
    assert load(root, classes=names)[0].classes == tuple(names)
    with pytest.raises(ConfigError):
        load(root, classes=["0", "1"])
    assert load(root, task="multiclass")[0].task == "multiclass"


def test_a_grade_beyond_four(root):
    write_table(root / "train.csv", ["id_code", "diagnosis"], [["aa", 5], ["bb", 0], ["cc", "1.0"]])
    assert one(load(root)[1], "unknown-label").rows == (2, 4)


def test_the_published_split(root):
    rows = [["aa", 2, "train"], ["bb", 0, "test"], ["cc", 4, "train"]]
    write_table(root / "diffmic_split.csv", ["id_code", "label", "split"], rows)
    assert load(root, split="published")[0].table["split"].tolist() == ["train", "test", "train"]
    rows[1][1] = 3
    write_table(root / "diffmic_split.csv", ["id_code", "label", "split"], rows)
    assert one(load(root, split="published")[1], "split-label-mismatch").rows == (3,)


def test_wrong_folder(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv"):
        load(tmp_path)
