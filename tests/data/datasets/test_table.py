"""A hospital's own table."""

import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.datasets.table import read
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, DataError
from tests.data.published import codes, one, write_table


def hospital(root, header, rows, files=("a.png", "b.png", "c.png"), name="manifest.csv", **options):
    """Write a table and (empty) image files; read it."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    write_table(root / name, header, rows)
    findings = Findings()
    return read(DatasetConfig(name="table", root=str(root), **options), findings), findings


def test_all_columns(tmp_path):
    header = ["image", "label", "patient_id", "institution", "split", "age"]
    rows = [
        ["a.png", "mel", "p1", "N", "train", 3],
        ["b.png", "nv", "", "S", "Test", 4],
        ["./c.png", "mel", "p2", "N", "val", 5],
    ]
    manifest, findings = hospital(tmp_path, header, rows)
    assert manifest.classes == ("mel", "nv")
    assert manifest.task == "multiclass"
    assert manifest.labels.tolist() == [0, 1, 0]
    assert manifest.table["group"].tolist() == ["p1", "image:b.png", "p2"]
    assert manifest.table["institution"].tolist() == ["N", "S", "N"]
    assert manifest.table["split"].tolist() == ["train", "test", "val"]
    assert manifest.table["image"].tolist() == [str(tmp_path / n) for n in ("a.png", "b.png", "c.png")]
    assert manifest.table["line"].tolist() == [2, 3, 4]
    assert codes(findings) == {"no-groups": "warning"}
    assert one(findings, "no-groups").count == 1


def test_numbers_are_names_in_their_natural_order(tmp_path):
    manifest, _ = hospital(tmp_path, ["image", "label"], [["a.png", 10], ["b.png", 2], ["c.png", 0]])
    assert manifest.classes == ("0", "2", "10")
    assert manifest.labels.tolist() == [2, 1, 0]


def test_classes_of_the_configuration_set_the_order(tmp_path):
    rows = [["a.png", "x"], ["b.png", "y"], ["c.png", "x"]]
    manifest, _ = hospital(tmp_path, ["image", "label"], rows, classes=["z", "y", "x"], task="ordinal")
    assert manifest.classes == ("z", "y", "x")
    assert manifest.task == "ordinal"
    assert manifest.labels.tolist() == [2, 1, 2]


def test_several_labels(tmp_path):
    rows = [["a.png", "Mass|Edema"], ["b.png", ""], ["c.png", "No Finding"]]
    manifest, findings = hospital(tmp_path, ["image", "label"], rows)
    assert manifest.task == "multilabel"
    assert manifest.classes == ("Edema", "Mass")
    assert manifest.labels.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert not findings.errors


def test_no_finding_is_no_label_where_the_configuration_lists_others(tmp_path):
    rows = [["a.png", "No Finding"], ["b.png", "Edema"], ["c.png", "Mass"]]
    manifest, _ = hospital(tmp_path, ["image", "label"], rows, classes=["Edema", "Mass"], task="multilabel")
    assert manifest.labels.tolist() == [[0, 0], [1, 0], [0, 1]]
    manifest, _ = hospital(tmp_path, ["image", "label"], rows)
    assert manifest.classes == ("Edema", "Mass", "No Finding")


def test_all_faults_are_found_at_once_and_none_is_named(tmp_path):
    header = ["image", "label", "patient_id", "split"]
    rows = [
        ["a.png", "x", "anna", "train"],
        ["b.png", "q", "anna", "train"],
        ["anna_gone.png", "x", "p", "train"],
        ["c.png", "", "p", "train"],
        ["/etc/anna", "x", "p", "train"],
        ["../anna.png", "x", "p", "train"],
        ["", "x", "p", "train"],
        ["a.png", "x", "p", "later"],
        ["a.png", "x", "p", ""],
        ["C:\\anna.png", "y", "p", "test"],
    ]
    manifest, findings = hospital(tmp_path, header, rows, classes=["x", "y"])
    with pytest.raises(DataError) as caught:
        findings.raise_if_errors()
    text = str(caught.value)
    assert one(findings, "unknown-label").rows == (3,)
    assert one(findings, "missing-image").rows == (4,)
    assert one(findings, "path-outside").rows == (6, 7, 11)
    assert one(findings, "unknown-split").rows == (9,)
    assert [(f.field, f.rows) for f in findings if f.code == "empty-value"] == [
        ("split", (10,)),
        ("label", (5,)),
        ("image", (8,)),
    ]
    for code in ("unknown-label", "missing-image", "path-outside", "unknown-split", "empty-value"):
        assert code in text
    assert "anna" not in text
    assert manifest.table["line"].tolist() == [2, 9, 10]


@pytest.mark.parametrize(
    "path",
    ["../x.png", "a/../../x.png", "/x.png", "..", "..\\x.png", "\\x.png", "C:/x.png", "d:x.png", "a/b/../../../x.png"],
)
def test_paths_out_of_the_folder(tmp_path, path):
    (tmp_path / "x.png").write_bytes(b"x")
    root = tmp_path / "root"
    rows = [["a.png", "x"], ["b.png", "y"], [path, "y"]]
    manifest, findings = hospital(root, ["image", "label"], rows, on_bad_image="skip")
    assert one(findings, "path-outside").severity == "error"
    assert len(manifest) == 2


def test_windows_separators_and_detours_inside_the_folder(tmp_path):
    rows = [["s\\a.png", "x"], ["s/../s/b.png", "y"], ["./s//c.png", "y"]]
    manifest, findings = hospital(tmp_path, ["image", "label"], rows, files=("s/a.png", "s/b.png", "s/c.png"))
    assert manifest.table["image"].tolist() == [str(tmp_path / "s" / n) for n in ("a.png", "b.png", "c.png")]
    assert not findings.errors


def test_skip_goes_on_and_says_how_many(tmp_path):
    rows = [["a.png", "x"], ["b.png", "y"], ["gone.png", "y"], ["gone/too.png", "y"]]
    manifest, findings = hospital(tmp_path, ["image", "label"], rows, on_bad_image="skip")
    assert len(manifest) == 2
    found = one(findings, "missing-image")
    assert (found.severity, found.count, found.names) == ("warning", 2, ("gone.png", "gone/too.png"))


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "d.png").mkdir()
    _, findings = hospital(tmp_path, ["image", "label"], [["a.png", "x"], ["d.png", "y"]])
    assert one(findings, "missing-image").rows == (3,)


def test_which_table(tmp_path):
    with pytest.raises(DataError, match=r"no table; looked for manifest\.csv"):
        read(DatasetConfig(name="table", root=str(tmp_path)), Findings())
    rows = [["a.png", "x"], ["b.png", "y"]]
    manifest, _ = hospital(tmp_path, ["image", "label"], rows, name="own.csv")
    assert manifest.source == "own.csv"
    write_table(tmp_path / "second.csv", ["image", "label"], rows)
    with pytest.raises(DataError, match="2 tables"):
        read(DatasetConfig(name="table", root=str(tmp_path)), Findings())
    assert len(read(DatasetConfig(name="table", root=str(tmp_path / "second.csv")), Findings())) == 2
    write_table(tmp_path / "manifest.csv", ["image", "label"], rows)
    assert read(DatasetConfig(name="table", root=str(tmp_path)), Findings()).source == "manifest.csv"
    with pytest.raises(ConfigError):
        read(DatasetConfig(name="table", root=str(tmp_path / "none")), Findings())


def test_grades_in_words_need_an_order(tmp_path):
    rows = [["a.png", "mild"], ["b.png", "severe"]]
    _, findings = hospital(tmp_path, ["image", "label"], rows, task="ordinal")
    assert one(findings, "unknown-order").severity == "error"
    _, findings = hospital(tmp_path, ["image", "label"], rows, task="ordinal", classes=["mild", "severe"])
    assert not findings.errors


def test_one_class_and_a_column_of_names_are_no_classes(tmp_path):
    with pytest.raises(DataError, match="one-class"):
        hospital(tmp_path, ["image", "label"], [["a.png", "x"], ["b.png", "x"]])
    with pytest.raises(DataError) as caught:
        hospital(tmp_path, ["image", "label"], [["a.png", f"anna {i}"] for i in range(30)])
    assert "too-many-labels" in str(caught.value)
    assert "anna" not in str(caught.value)


def test_a_column_of_names_is_refused_before_anything_quotes_labels(tmp_path):
    """Each name in two ways, and with a comma: what is said of spellings and separators quotes labels."""
    rows = [["a.png", f"{'ANNA' if i % 2 else 'Anna'}, Meier {i // 2}"] for i in range(30)]
    with pytest.raises(DataError, match="too-many-labels") as caught:
        hospital(tmp_path, ["image", "label"], rows)
    assert "anna" not in str(caught.value).casefold() and "meier" not in str(caught.value).casefold()


def test_several_labels_in_a_task_of_one(tmp_path):
    rows = [["a.png", "x"], ["b.png", "y"], ["c.png", "x|y"]]
    _, findings = hospital(tmp_path, ["image", "label"], rows, task="multiclass", classes=["x", "y"])
    assert one(findings, "unknown-label").rows == (4,)


def test_a_row_of_totals_names_no_class(tmp_path):
    rows = [["a.png", "mel"], ["b.png", "nv"], ["Total", "40"]]
    manifest, findings = hospital(tmp_path, ["image", "label"], rows, on_bad_image="skip")
    assert manifest.classes == ("mel", "nv")
    assert manifest.labels.tolist() == [0, 1]
    assert one(findings, "missing-image").rows == (4,)
    assert not findings.errors


def test_a_row_of_totals_names_no_class_among_several_labels(tmp_path):
    rows = [["a.png", "Mass|Edema"], ["b.png", ""], ["Total", "40"]]
    manifest, findings = hospital(tmp_path, ["image", "label"], rows, on_bad_image="skip", task="multilabel")
    assert manifest.classes == ("Edema", "Mass")
    assert manifest.labels.tolist() == [[1, 1], [0, 0]]
    assert not findings.errors


def test_labels_of_images_that_are_not_there_do_not_stop_a_run_that_skips(tmp_path):
    rows = [["a.png", "mel"], ["gone.png", "typo"], ["b.png", "nv"]]
    manifest, findings = hospital(tmp_path, ["image", "label"], rows, on_bad_image="skip", classes=["nv", "mel"])
    assert manifest.labels.tolist() == [1, 0]
    assert manifest.table["line"].tolist() == [2, 4]
    assert not findings.errors


@pytest.mark.parametrize(
    ("one_way", "other_way"),
    [("Melanoma", "melanoma"), ("1", "1.0"), ("No finding", "no_finding"), ("ne\u200bvus", "nevus")],
)
def test_one_label_spelt_two_ways_is_said(tmp_path, one_way, other_way):
    rows = [["a.png", one_way], ["b.png", other_way], ["c.png", "other"]]
    manifest, findings = hospital(tmp_path, ["image", "label"], rows)
    assert one(findings, "label-spelt-twice").severity == "warning"
    assert len(manifest.classes) == 3


def test_comma_and_semicolon_separate_no_labels_and_that_is_said(tmp_path):
    rows = [["a.png", "Edema, Mass"], ["b.png", "Edema"], ["c.png", "Mass"]]
    _, findings = hospital(tmp_path, ["image", "label"], rows)
    assert "'|'" in one(findings, "label-separator").remedy
    (tmp_path / "whole").mkdir()
    named = [["a.png", "Carcinoma, basal cell"], ["b.png", "Nevus"], ["c.png", "Nevus"]]
    assert "label-separator" not in codes(hospital(tmp_path / "whole", ["image", "label"], named)[1])


def test_a_windows_drive_is_called_one(tmp_path):
    rows = [["C:\\data\\a.png", "x"], ["b.png", "y"], ["c.png", "y"]]
    _, findings = hospital(tmp_path, ["image", "label"], rows)
    assert "1 paths begin with a Windows drive" in one(findings, "path-outside").message


def test_names_that_are_nearly_there_are_said_in_kind(tmp_path):
    rows = [["A.PNG", "x"], ["b", "y"], ["c.png", "y"], ["d.png", "x"]]
    _, findings = hospital(tmp_path, ["image", "label"], rows)
    message = one(findings, "missing-image").message
    assert "1 of them with other upper and lower case" in message
    assert "1 of them with another ending, or one where the table has none" in message


def test_doubtful_patients_are_said(tmp_path):
    rows = [["a.png", "x", "0007"], ["b.png", "y", "7"], ["c.png", "y", "NA"]]
    _, findings = hospital(tmp_path, ["image", "label", "patient_id"], rows)
    assert one(findings, "group-spelt-twice").count == 2
    assert one(findings, "group-placeholder").count == 1


def test_missing_images_are_looked_for_where_the_table_lies(tmp_path):
    """Its paths start there: another dataset.root would not find them."""
    _, findings = hospital(tmp_path, ["image", "label"], [["x/a.png", "mel"], ["x/b.png", "nv"]])
    [none] = [item for item in findings if item.code == "no-images"]
    assert "under the folder of the table" in none.message and "Put the table into the folder" in none.remedy
    _, findings = hospital(tmp_path, ["image", "label"], [["a.png", "mel"], ["gone.png", "nv"]])
    [one_gone] = [item for item in findings if item.code == "missing-image"]
    assert one_gone.message.startswith("1 of 2 images that the table names are not under the folder of the table")
