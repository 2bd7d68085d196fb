"""Findings: collected, raised together, names in the file alone."""

import csv
import stat

import pytest

from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import DataError, MachineError


def filled(path=None) -> Findings:
    findings = Findings(path)
    findings.add(
        "unknown-label",
        "error",
        "not a class",
        table="t.csv",
        rows=range(2, 9),
        field="label",
        remedy="Mend it.",
        names=[f"anna_{i}.png" for i in range(2, 9)],
    )
    findings.add("no-groups", "warning", "no patient", table="t.csv", count=40)
    findings.add("missing-image", "error", "gone", table="t.csv", rows=[3], field="image", names=["berta.png"])
    return findings


def test_all_are_raised_together_with_table_rows_field_and_count():
    with pytest.raises(DataError) as caught:
        filled().raise_if_errors()
    text = str(caught.value)
    assert "2 kind(s) of fault, 1 warning(s)" in text
    assert "error [unknown-label] t.csv, field label, rows 2, 3, 4, 5, 6, ...: not a class (count 7)" in text
    assert "error [missing-image] t.csv, field image, row 3: gone (count 1)" in text
    assert "warning [no-groups] t.csv: no patient (count 40)" in text
    assert "Mend it." in text


def test_no_name_is_in_a_message_or_in_the_objects_text(tmp_path):
    findings = filled(tmp_path / "findings.csv")
    with pytest.raises(DataError) as caught:
        findings.raise_if_errors()
    for text in (str(caught.value), repr(caught.value), *findings.lines(), *map(repr, findings)):
        assert "anna" not in text
        assert "berta" not in text
    assert str(tmp_path / "findings.csv") in str(caught.value)


def test_the_file_holds_every_row_and_name_and_is_the_owners_alone(tmp_path):
    path = tmp_path / "findings.csv"
    filled(path).write()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["image"] for r in rows] == [*(f"anna_{i}.png" for i in range(2, 9)), "berta.png", ""]
    assert [r["row"] for r in rows] == [*map(str, range(2, 9)), "3", ""]
    assert rows[0]["message"] == "not a class"
    assert rows[1]["message"] == ""


def test_without_a_path_nothing_is_written_and_a_bad_path_is_the_machines_fault(tmp_path):
    filled().write()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MachineError):
        filled(tmp_path / "no" / "such" / "findings.csv").write()


def test_warnings_alone_do_not_raise():
    findings = Findings()
    findings.add("no-groups", "warning", "no patient")
    findings.raise_if_errors()
    assert [f.row for f in findings] == [0]
    with pytest.raises(ValueError, match="severity"):
        findings.add("x", "fatal", "y")
