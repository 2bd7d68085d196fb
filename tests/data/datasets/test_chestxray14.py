"""ChestX-ray14: labels, patients, lists."""

import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets.chestxray14 import CLASSES, read
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, DataError
from tests.data.published import codes, one, write_table

HEADER = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "OriginalImage[Width", "Height]"]
ROWS = [
    ["1_0.png", "Cardiomegaly|Emphysema", 0, 1, 9, 9],
    ["1_1.png", "No Finding", 1, 1, 9, 9],
    ["2_0.png", "Hernia", 0, 2, 9, 9],
    ["3_0.png", "Pleural_Thickening|Hernia", 0, 3, 9, 9],
]


@pytest.fixture
def root(tmp_path):
    for index, row in enumerate(ROWS):
        path = tmp_path / f"images_{index:03}" / "images" / row[0]
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    write_table(tmp_path / "Data_Entry_2017.csv", HEADER, ROWS)
    return tmp_path


def load(root, **options):
    findings = Findings()
    return read(DatasetConfig(name="chestxray14", root=str(root), **options), findings), findings


def hot(*names, of=CLASSES):
    return [float(name in names) for name in of]


def test_labels_and_patients(root):
    manifest, findings = load(root)
    assert manifest.task == "multilabel"
    assert manifest.classes == CLASSES
    assert len(CLASSES) == 14
    assert manifest.labels.tolist() == [
        hot("Cardiomegaly", "Emphysema"),
        hot(),
        hot("Hernia"),
        hot("Pleural_Thickening", "Hernia"),
    ]
    assert manifest.table["group"].tolist() == ["1", "1", "2", "3"]
    assert len(findings) == 0


def test_no_finding_as_a_15th_label(root):
    manifest, _ = load(root, no_finding=True)
    assert manifest.classes == (*CLASSES, "No Finding")
    assert manifest.labels[:, 14].tolist() == [0, 1, 0, 0]


def test_some_labels_only(root):
    manifest, findings = load(root, classes=["Hernia", "Cardiomegaly"])
    assert manifest.labels.tolist() == [[0, 1], [0, 0], [1, 0], [1, 0]]
    assert one(findings, "label-not-predicted").severity == "warning"
    for options in ({"classes": ["Hernia", "Flu"]}, {"task": "multiclass"}):
        with pytest.raises(ConfigError):
            load(root, **options)


def test_faults(root):
    rows = [*ROWS, ["4_0.png", "Flu", 0, 4, 9, 9], ["1_0.png", "No Finding|Mass", 0, "", 9, 9]]
    write_table(root / "Data_Entry_2017.csv", HEADER, rows)
    (root / "images_001" / "images" / "2_0.png").write_bytes(b"y")
    _, findings = load(root)
    assert one(findings, "unknown-label").rows == (6,)
    assert one(findings, "contradicting-labels").rows == (7,)
    assert one(findings, "missing-image").rows == (6,)
    assert one(findings, "ambiguous-image").rows == (4,)
    assert one(findings, "no-groups").count == 1


def lists(root, contents):
    for name, lines in contents.items():
        (root / name).write_text("\n".join(lines))


def bits(*names):
    return " ".join(str(int(name in names)) for name in CLASSES)


def chexnet(prefix="", wrong=""):
    return {
        f"{prefix}train_list.txt": [
            f"1_0.png {bits('Cardiomegaly', 'Emphysema')}",
            f"1_1.png {bits(*[wrong] if wrong else [])}",
        ],
        f"{prefix}val_list.txt": [f"2_0.png {bits('Hernia')}"],
        f"{prefix}test_list.txt": [f"3_0.png {bits('Pleural_Thickening', 'Hernia')}", ""],
    }


@pytest.mark.parametrize("prefix", ["chexnet_", ""])
def test_the_chexnet_lists(root, prefix):
    lists(root, chexnet(prefix))
    manifest, findings = load(root, split="published")
    assert manifest.table["split"].tolist() == ["train", "train", "val", "test"]
    assert len(findings) == 0
    assert set(load(root)[0].table["split"]) == {""}


def test_the_official_lists_come_first(root):
    lists(
        root,
        chexnet("chexnet_") | {"train_val_list.txt": ["1_0.png", "1_1.png"], "test_list.txt": ["3_0.png", "2_0.png"]},
    )
    manifest, findings = load(root, split="published")
    assert manifest.table["split"].tolist() == ["train", "train", "test", "test"]
    assert len(findings) == 0


def test_bits_that_do_not_fit_the_table(root):
    lists(root, chexnet(wrong="Mass"))
    found = one(load(root, split="published")[1], "split-label-mismatch")
    assert (found.severity, found.table, found.rows) == ("error", "train_list.txt", (2,))


def test_a_patient_on_both_sides_and_an_image_in_no_list(root):
    lists(root, {"train_val_list.txt": ["1_0.png", "2_0.png"], "test_list.txt": ["1_1.png"]})
    manifest, findings = load(root, split="published")
    assert codes(findings) == {"not-in-split": "warning", "published-split-leak": "warning"}
    assert one(findings, "not-in-split").rows == (5,)
    assert len(manifest) == 3


@pytest.mark.parametrize("line", ["1_0.png 0 1", "1_0.png " + " ".join("2" * 14), "1_0.png\n1_1.png 0"])
def test_a_list_of_something_else(root, line):
    lists(root, {"train_val_list.txt": [line], "test_list.txt": ["3_0.png"]})
    with pytest.raises(DataError) as caught:
        load(root, split="published")
    assert "train_val_list.txt" in str(caught.value)
    assert "1_0" not in str(caught.value)


def test_an_image_in_two_lists(root):
    lists(root, {"train_val_list.txt": ["1_0.png", "2_0.png"], "test_list.txt": ["2_0.png"]})
    assert one(load(root, split="published")[1], "duplicate-row").severity == "error"


def test_incomplete_lists(root):
    lists(root, {"train_val_list.txt": ["1_0.png"]})
    with pytest.raises(DataError, match=r"train_val_list\.txt \+ test_list\.txt or chexnet_train_list\.txt"):
        load(root, split="published")


def test_wrong_folder(tmp_path):
    with pytest.raises(DataError, match=r"Data_Entry_2017\*\.csv"):
        load(tmp_path)
