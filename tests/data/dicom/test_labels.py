"""Labels joined by accession number or SOP instance UID; what is doubled, contradicts or is missing is said."""

import pytest

from fed_diffmic.data.dicom.labels import read_labels
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import DataError


def labels(tmp_path, text, join="auto", column="label"):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    findings = Findings()
    return read_labels(path, join, column, findings), findings


@pytest.mark.parametrize("name", ["accession", "accession_number", "AccessionNumber"])
def test_accession_numbers_by_their_usual_names(tmp_path, name):
    found, findings = labels(tmp_path, f"{name};label\nA1;yes\n A2 ; no\n")
    assert found.join == "accession" and found.of == {"A1": "yes", "A2": "no"} and not len(findings)


def test_sop_instance_uids_and_another_column(tmp_path):
    found, _ = labels(tmp_path, "SOPInstanceUID,grade,label\n1.2.3,2,x\n", column="grade")
    assert found.join == "sop" and found.of == {"1.2.3": "2"}


def test_doubled_rows_count_once_and_contradictions_not_at_all(tmp_path):
    found, findings = labels(tmp_path, "accession,label\nA,x\nB,y\nA,x\nB,z\nC,x\n")
    assert found.of == {"A": "x", "C": "x"} and found.contradicting == {"B"}
    said = {item.code: (item.count, item.rows) for item in findings}
    assert said == {"duplicate-row": (1, (4,)), "contradicting-labels": (2, (3, 5))}
    assert "B" not in " ".join(findings.lines()).split()  # keys stand in the site's own file alone


@pytest.mark.parametrize(
    ("text", "join", "message", "remedy"),
    [
        ("accession,diagnosis\nA,x\n", "auto", "missing column", "dicom.label_column"),
        ("number,label\nA,x\n", "auto", "no column that finds an image", "first line exactly so"),
        ("accession,sop,label\nA,1.2,x\n", "auto", "both", "dicom.join=accession"),
        ("accession,label\nA,x\n", "sop", "no column that finds an image", "first line exactly so"),
        ("accession,label\nA,\n", "auto", "empty value", "Fill in the empty values, or remove their rows."),
        ("", "auto", "the table is empty", "Give it a first line"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_and_what_to_do(tmp_path, text, join, message, remedy):
    with pytest.raises(DataError) as caught:
        labels(tmp_path, text, join)
    assert message in caught.value.cause and remedy in caught.value.remedy
    if message == "the table is empty":  # another column would not help
        assert "label_column" not in caught.value.remedy


def test_the_one_that_is_named_is_used_where_both_are_there(tmp_path):
    found, _ = labels(tmp_path, "accession,sop,label\nA,1.2,x\n", "sop")
    assert found.of == {"1.2": "x"}
