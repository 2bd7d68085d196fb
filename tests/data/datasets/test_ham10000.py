"""HAM10000: metadata in its editions, the ISIC ground truth, the published split."""

import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets.ham10000 import CLASSES, read
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, DataError
from tests.data.published import codes, one, write_table

HEADER = ["lesion_id", "image_id", "dx", "dx_type", "dataset"]
ROWS = [
    ["HAM_1", "ISIC_1", "bkl", "histo", "rosendahl"],
    ["HAM_1", "ISIC_2", "bkl", "histo", "rosendahl"],
    ["HAM_2", "ISIC_3", "mel", "histo", "vidir_modern"],
    ["HAM_3", "ISIC_4", "vasc", "consensus", "vienna_dias"],
]


def images(root, *names):
    for name in names or ("part_1/ISIC_1.jpg", "part_1/ISIC_2.jpg", "part_2/ISIC_3.jpg", "part_2/deep/ISIC_4.JPG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def load(root, **options):
    findings = Findings()
    return read(DatasetConfig(name="ham10000", root=str(root), **options), findings), findings


@pytest.mark.parametrize(
    ("name", "separator"),
    [
        ("HAM10000_metadata.csv", ","),
        ("HAM10000_metadata", ","),
        ("HAM10000_metadata.tab", "\t"),
        ("sub/HAM10000_metadata.tsv", "\t"),
    ],
)
def test_metadata_in_its_editions(tmp_path, name, separator):
    images(tmp_path)
    write_table(tmp_path / name, HEADER, ROWS, separator)
    manifest, findings = load(tmp_path)
    assert len(findings) == 0
    assert manifest.classes == ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")
    assert manifest.labels.tolist() == [4, 4, 0, 6]
    assert manifest.table["group"].tolist() == ["HAM_1", "HAM_1", "HAM_2", "HAM_3"]
    assert manifest.table["institution"].tolist() == ["rosendahl", "rosendahl", "vidir_modern", "vienna_dias"]
    assert manifest.table["image"].tolist()[3] == str(tmp_path / "part_2/deep/ISIC_4.JPG")


def test_without_the_institution(tmp_path):
    images(tmp_path)
    write_table(tmp_path / "HAM10000_metadata.csv", HEADER[:4], [row[:4] for row in ROWS])
    manifest, findings = load(tmp_path)
    assert set(manifest.table["institution"]) == {""}
    assert not findings.errors


def truth(root, rows=None, name="ISIC2018_Task3_Training_GroundTruth.csv"):
    columns = [c.upper() for c in CLASSES]
    rows = rows or [[row[1], *(f"{float(row[2] == c):.1f}" for c in CLASSES)] for row in ROWS]
    write_table(root / name, ["image", *columns], rows)


def test_the_isic_ground_truth_without_and_with_lesions(tmp_path):
    images(tmp_path)
    truth(tmp_path, name="ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv")
    manifest, findings = load(tmp_path)
    assert manifest.labels.tolist() == [4, 4, 0, 6]
    assert manifest.table["group"].nunique() == 4
    assert codes(findings) == {"no-groups": "warning"}
    write_table(
        tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv",
        ["image", "lesion_id", "diagnosis_confirm_type"],
        [[row[1], row[0], "histo"] for row in ROWS],
    )
    manifest, findings = load(tmp_path)
    assert manifest.table["group"].tolist() == ["HAM_1", "HAM_1", "HAM_2", "HAM_3"]
    assert len(findings) == 0


def test_a_ground_truth_that_is_not_one_hot(tmp_path):
    images(tmp_path)
    rows = [
        ["ISIC_1", "1.0", "1.0", 0, 0, 0, 0, 0],
        ["ISIC_2", 0, 0, 0, 0, 0, 0, 0],
        ["ISIC_3", 0, 0, "0.4", 0, 0, 0, 1],
        ["ISIC_4", 0, 1, 0, 0, 0, 0, 0],
    ]
    truth(tmp_path, rows)
    manifest, findings = load(tmp_path, on_bad_image="skip")
    assert one(findings, "not-one-hot").rows == (2, 3, 4)
    assert manifest.table["line"].tolist() == [5]


def test_no_table_says_what_was_looked_for(tmp_path):
    images(tmp_path)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert "HAM10000_metadata.csv" in str(caught.value)
    assert "ISIC2018_Task3_Training_GroundTruth.csv" in str(caught.value)
    assert caught.value.exit_code == 3


def test_faults(tmp_path):
    images(tmp_path, "a/ISIC_1.jpg", "b/ISIC_1.jpg", "ISIC_2.jpg")
    rows = [*ROWS, ["HAM_4", "ISIC_5", "melanoma", "", ""], ["HAM_5", "", "mel", "", ""]]
    write_table(tmp_path / "HAM10000_metadata.csv", HEADER, rows)
    manifest, findings = load(tmp_path)
    assert one(findings, "ambiguous-image").rows == (2,)
    assert one(findings, "missing-image").rows == (4, 5, 6)
    assert one(findings, "unknown-label").rows == (6,)
    assert one(findings, "empty-value").rows == (7,)
    assert manifest.table["line"].tolist() == [3]


def split_file(root, rows):
    write_table(root / "diffmic_split.csv", ["image_id", "label", "split"], rows)


def test_the_published_split_warns_of_lesions_on_both_sides(tmp_path):
    images(tmp_path)
    write_table(tmp_path / "HAM10000_metadata.csv", HEADER, ROWS)
    split_file(tmp_path, [["ISIC_1", 4, "train"], ["ISIC_2", 4, "test"], ["ISIC_3", 0, "train"], ["ISIC_9", 0, "test"]])
    manifest, findings = load(tmp_path, split="published")
    assert manifest.table["split"].tolist() == ["train", "test", "train"]
    leak = one(findings, "published-split-leak")
    assert (leak.severity, leak.count, leak.rows) == ("warning", 1, (2, 3))
    assert "1 of 2 lesions" in leak.message
    assert one(findings, "not-in-split").rows == (5,)
    assert one(findings, "not-in-table").count == 1
    assert not findings.errors


def test_the_published_split_is_cross_checked(tmp_path):
    images(tmp_path)
    write_table(tmp_path / "HAM10000_metadata.csv", HEADER, ROWS)
    split_file(
        tmp_path, [["ISIC_1", 4, "train"], ["ISIC_2", 5, "train"], ["ISIC_3", 0, "test"], ["ISIC_4", "x", "test"]]
    )
    _, findings = load(tmp_path, split="published")
    assert one(findings, "split-label-mismatch").rows == (3, 5)
    split_file(tmp_path, [["ISIC_1", 4, "train"], ["ISIC_1", 4, "test"]])
    _, findings = load(tmp_path, split="published")
    assert one(findings, "duplicate-row").severity == "error"
    assert "ISIC_" not in "".join(findings.lines())


def test_the_published_split_must_be_there(tmp_path):
    images(tmp_path)
    write_table(tmp_path / "HAM10000_metadata.csv", HEADER, ROWS)
    with pytest.raises(DataError, match=r"diffmic_split\.csv"):
        load(tmp_path, split="published")


def test_task_and_classes(tmp_path):
    images(tmp_path)
    write_table(tmp_path / "HAM10000_metadata.csv", HEADER, ROWS)
    for options in ({"task": "ordinal"}, {"classes": ["mel", "melanoma"]}):
        with pytest.raises(ConfigError):
            load(tmp_path, **options)
    _, findings = load(tmp_path, classes=["mel", "nv"])
    assert one(findings, "unknown-label").rows == (2, 3, 5)
