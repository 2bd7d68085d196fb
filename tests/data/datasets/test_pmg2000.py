"""PMG2000: the authors' list as CSV and as a pickle."""

import os
import pickle

import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets.pmg2000 import read
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, DataError
from tests.data.published import codes, one, write_table


@pytest.fixture
def root(tmp_path):
    for name in ("images/a.png", "images/b.png", "more/c.png", "more/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def load(root, **options):
    findings = Findings()
    return read(DatasetConfig(name="pmg2000", root=str(root), **options), findings), findings


def dump(path, value):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("label", ["label", "grade"])
@pytest.mark.parametrize("name", ["pmg2000.csv", "manifest.csv", "own.csv"])
def test_csv(root, name, label):
    write_table(
        root / name,
        ["image", label, "patient_id"],
        [["images/a.png", 0, "p"], ["b.png", 3, "p"], ["more/c.png", 1, ""]],
    )
    manifest, findings = load(root)
    assert manifest.task == "ordinal"
    assert manifest.classes == ("0", "1", "2", "3")
    assert manifest.labels.tolist() == [0, 3, 1]
    assert manifest.table["group"].tolist() == ["p", "p", "image:more/c.png"]
    assert codes(findings) == {"no-groups": "warning"}


@pytest.mark.parametrize(("image", "label"), [("img_root", "label"), ("image", "grade"), ("path", "target")])
def test_pickle_with_paths_of_the_authors_machine(root, image, label):
    dump(
        root / "pmg.pkl", [{image: "/home/author/pmg/a.png", label: 0}, {image: "C:\\pmg\\d.png", label: "2", "w": 1.5}]
    )
    manifest, findings = load(root)
    assert manifest.table["image"].tolist() == [str(root / "images/a.png"), str(root / "more/d.png")]
    assert manifest.labels.tolist() == [0, 2]
    assert manifest.table["line"].tolist() == [1, 2]
    assert not findings.errors


def test_grades_counted_from_one(root):
    dump(
        root / "pmg.pkl",
        [{"image": f"{name}.png", "label": grade} for name, grade in zip("abcd", (1, 2, 3, 4), strict=True)],
    )
    assert load(root)[0].labels.tolist() == [0, 1, 2, 3]
    dump(
        root / "pmg.pkl",
        [{"image": f"{name}.png", "label": grade} for name, grade in zip("abcd", (0, 2, 3, 4), strict=True)],
    )
    assert one(load(root)[1], "unknown-label").rows == (4,)


def test_lists_for_train_and_test(root):
    dump(root / "pmg_train.pkl", [{"image": "a.png", "label": 0}, {"image": "b.png", "label": 1}])
    dump(root / "pmg_test.pickle", [{"image": "c.png", "label": 2}, {"image": "d.png", "label": 3}])
    manifest, _ = load(root)
    assert sorted(manifest.labels.tolist()) == [0, 1, 2, 3]
    assert set(manifest.table["split"]) == {""}
    table = load(root, split="published")[0].table
    assert {(os.path.basename(i), s) for i, s in zip(table["image"], table["split"], strict=True)} == {
        ("a.png", "train"),
        ("b.png", "train"),
        ("c.png", "test"),
        ("d.png", "test"),
    }
    (root / "pmg_test.pickle").rename(root / "pmg_rest.pickle")
    with pytest.raises(ConfigError, match=r"dataset\.split"):
        load(root, split="published")


class Runs:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_list_is_refused_by_name_and_does_nothing(root):
    dump(root / "pmg.pkl", [{"image": "a.png", "label": Runs(root / "pwned")}])
    with pytest.raises(DataError) as caught:
        load(root)
    assert "unsafe-pickle" in str(caught.value)
    assert "pmg.pkl" in str(caught.value)
    assert not (root / "pwned").exists()


@pytest.mark.parametrize(
    "value", [[], {}, "text", [[1]], [{"image": "anna.png"}], [{"label": 1}], [{"image": 3, "label": 1}]]
)
def test_other_values(root, value):
    dump(root / "pmg.pkl", value)
    with pytest.raises(DataError) as caught:
        load(root)
    assert "malformed-table" in str(caught.value)
    assert "anna" not in str(caught.value)


def test_entries_that_are_wrong_are_counted_and_the_rest_is_checked(root):
    good = {"image": "a.png", "label": 1}
    dump(
        root / "p.pkl",
        [good, {"image": "b.png", "label": True}, {"image": "b.png", "label": 2.0}, 7, {"image": "x.png", "label": 9}],
    )
    manifest, findings = load(root)
    assert one(findings, "malformed-table").rows == (2, 4)
    assert one(findings, "unknown-label").rows == (5,)
    assert one(findings, "missing-image").rows == (5,)
    assert manifest.table["line"].tolist() == [1, 3]


def test_a_path_above_the_root_is_found_by_name_below_it_or_not_at_all(root):
    (root.parent / "secret.png").write_bytes(b"x")
    write_table(root / "pmg2000.csv", ["image", "label"], [["../secret.png", 1], ["../a.png", 2]])
    manifest, findings = load(root)
    assert manifest.table["image"].tolist() == [str(root / "images/a.png")]
    assert one(findings, "missing-image").rows == (2,)


def test_wrong_folder_and_wrong_column(root):
    with pytest.raises(DataError, match=r"pmg2000\.csv"):
        load(root)
    write_table(root / "pmg2000.csv", ["image", "stage"], [["a.png", 1]])
    with pytest.raises(DataError, match=r"missing column\(s\): label; needed: image, label; there are: image, stage"):
        load(root)
