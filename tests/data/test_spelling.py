"""Names that may be one name, and names that stand for no name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.spelling import alike, report_groups, spelling_key
from tests.data.published import codes, one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "7.0"),
        ("0007", "7"),
        ("+7", "7"),
        ("1", "1.0"),
        ("Melanoma", "melanoma"),
        ("na\u00efve", "nai\u0308ve"),
        ("nevus", "ne\u200bvus"),
        ("No finding", "no_finding"),
        ("No-Finding", "No Finding"),
        ("\uff2d\uff25\uff2c", "mel"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_spellings_of_one_name(one, other):
    assert spelling_key(one) == spelling_key(other)
    assert alike([one, other, "else"]) == [sorted([one, other])]


@pytest.mark.parametrize(
    ("one", "other"), [("7", "70"), ("7", "7.5"), ("7", "-7"), ("1.05", "1.5"), ("mel", "mela"), ("p1", "p01")]
)
def test_other_names_stay_apart(one, other):
    assert spelling_key(one) != spelling_key(other)
    assert alike([one, other]) == []


@given(st.lists(st.text(max_size=8), max_size=20))
def test_sets_hold_each_name_once(names):
    found = [name for group in alike(names) for name in group]
    assert len(found) == len(set(found))
    assert set(found) <= set(names)


def test_patients_written_two_ways_and_placeholders_are_counted_not_named():
    groups = np.array(["0007", "7", "8", "NA", "NA", "unknown", "anna", "Anna", ""], dtype=object)
    findings = Findings()
    lines = np.arange(2, 11)
    report_groups(groups, lines=lines, table="t.csv", field="patient_id", unit="patient", findings=findings)
    assert codes(findings) == {"group-spelt-twice": "warning", "group-placeholder": "warning"}
    twice = one(findings, "group-spelt-twice")
    assert twice.count == 4 and twice.rows == (2, 3, 8, 9)
    unknown = one(findings, "group-placeholder")
    assert unknown.rows == (5, 6, 7) and "count as 2 patient(s)" in unknown.message
    assert not any(name in " ".join(findings.lines()) for name in ("anna", "0007"))
