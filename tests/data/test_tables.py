"""Tables as hospitals write them: separators, encodings, quotation, shifted rows, wrong headers."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.tables import check_filled, find_table, read_table
from fed_diffmic.errors import DataError, FedDiffmicError, MachineError
from tests.data.published import codes, one


def read(tmp_path, content, required=("image", "label"), optional=()):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    findings = Findings()
    return read_table(path, findings, required=required, optional=optional), findings


def refused(tmp_path, content, **kwargs):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    findings = Findings()
    with pytest.raises(DataError) as caught:
        read_table(path, findings, required=kwargs.get("required", ("image", "label")))
    return findings, str(caught.value)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_separators_line_ends_and_byte_order_mark(tmp_path, separator, end, mark):
    lines = [["image", "label", "x"], [" a.png ", "nævus", "1"], ["b.png", "", ""]]
    content = mark + end.join(separator.join(row) for row in lines).encode()
    table, findings = read(tmp_path, content)
    assert len(findings) == 0
    assert table["image"].tolist() == ["a.png", "b.png"]
    assert table["label"].tolist() == ["nævus", ""]
    assert table.lines.tolist() == [2, 3]


def test_line_numbers_count_the_lines_of_the_file(tmp_path):
    table, _ = read(tmp_path, 'image,label\n\n"a\nb.png",x\n,,\nc.png,y\n')
    assert table["image"].tolist() == ["a\nb.png", "c.png"]
    assert table.lines.tolist() == [3, 6]


def test_text_stays_text(tmp_path):
    table, _ = read(tmp_path, "image,label\n007,1.0\nNA,nan\n1e3,None\n")
    assert table["image"].tolist() == ["007", "NA", "1e3"]
    assert table["label"].tolist() == ["1.0", "nan", "None"]


def test_latin1_names_the_line(tmp_path):
    findings, text = refused(tmp_path, "image,label\nanna.png,a\nb.png,nävus\n".encode("latin-1"))
    assert one(findings, "encoding").rows == (3,)
    assert "UTF-8" in text
    assert "anna" not in text


@pytest.mark.parametrize("content", ["image,label\na,b\n".encode("utf-16"), b"image,label\na\0,b\n"])
def test_other_encodings_are_refused(tmp_path, content):
    findings, _ = refused(tmp_path, content)
    assert codes(findings) == {"encoding": "error"}


def test_a_missing_column_says_what_is_there_and_what_is_needed(tmp_path):
    findings, text = refused(tmp_path, "image,Label,age\na,b,3\n")
    assert one(findings, "missing-column").field == "label"
    assert "missing column(s): label; needed: image, label; there are: image, Label, age" in text


@pytest.mark.parametrize(
    "header", ["scans/anna_1950.png,Anna,7", "00000013_005.png,4711,x", "anna.png,Mueller Anna 1950"]
)
def test_a_first_line_of_data_is_not_quoted(tmp_path, header):
    _, text = refused(tmp_path, header + "\n" + header + "\n")
    assert "seems to hold data" in text
    assert "nna" not in text
    assert "4711" not in text


def test_a_column_given_twice(tmp_path):
    findings, _ = refused(tmp_path, "image,label,label\na,b,c\n")
    assert one(findings, "duplicate-column").field == "label"


def test_rows_that_do_not_fit_the_header(tmp_path):
    table, findings = read(tmp_path, "image,label\na.png,x\nanna.png,x,y\nb.png\nc.png,y,,\n")
    found = one(findings, "malformed-table")
    assert found.rows == (3, 4)
    assert found.severity == "error"
    assert table["image"].tolist() == ["a.png", "c.png"]


def test_a_header_with_separators_inside_brackets_and_a_trailing_one(tmp_path):
    """ChestX-ray14's first edition: Image Index,...,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"""
    table, findings = read(tmp_path, "image,label,Size[Width,Height],\na.png,x,5,6,\nb.png,y,5,6\n")
    assert len(findings) == 0
    assert len(table) == 2


def test_an_open_quotation_mark(tmp_path):
    findings, text = refused(tmp_path, 'image,label\na.png,x\n"anna.png,y\nc.png,z\n')
    assert one(findings, "malformed-table").rows == (3,)
    assert "anna" not in text and "What to do: Close the quotation mark" in text


@pytest.mark.parametrize("content", ["", "\n\n", "image,label\n", "image,label\n,\n"])
def test_an_empty_table(tmp_path, content):
    findings, said = refused(tmp_path, content)
    assert codes(findings) == {"no-rows": "error"}
    assert "What to do: Give it a first line with the names of the columns, and its rows below that." in said
    read(tmp_path, "image,label\na.png,x\n")  # which is what it says


def test_a_folder_in_the_place_of_a_table_is_the_machines_fault(tmp_path):
    with pytest.raises(MachineError):
        read_table(tmp_path, Findings(), required=("image",))


def test_empty_values_are_found_by_column(tmp_path):
    table, findings = read(tmp_path, "image,label\n,x\nb,\nc,z\n")
    assert check_filled(table, ("image", "label"), findings).tolist() == [False, False, True]
    assert [(f.field, f.rows) for f in findings] == [("image", (2,)), ("label", (3,))]
    assert {f.remedy for f in findings} == {"Fill in the empty values, or remove their rows."}


def test_find_table_looks_one_folder_down_and_says_what_it_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"looked for Data_\*\.csv, other\.tab"):
        find_table(tmp_path, ("Data_*.csv", "other.tab"), "table")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "Data_2.csv").write_text("x")
    assert find_table(tmp_path, ("Data_*.csv",), "table").parent.name == "sub"
    (tmp_path / "Data_9.csv").write_text("x")
    assert find_table(tmp_path, ("Data_*.csv",), "table").parent == tmp_path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60).map(lambda tail: b"image,label\n" + tail) | st.binary(max_size=60))
def test_any_bytes_give_a_table_or_a_plain_error(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    try:
        table = read_table(tmp_path / "t.csv", Findings(), required=("image", "label"))
    except FedDiffmicError:
        return
    assert len(table) == len(table["image"]) == len(table["label"]) > 0


@pytest.mark.parametrize("separator", [";", ",", "\t", "|"])
def test_a_spreadsheets_line_above_the_header_names_the_separator(tmp_path, separator):
    rows = f"sep={separator}\r\nimage{separator}label\r\na.png{separator}x, y; z\r\n"
    rows = rows if separator in ("|", "\t") else rows.replace("x, y; z", "xyz")
    table = read(tmp_path, rows.encode())[0]
    assert table["image"].tolist() == ["a.png"]
    assert table.lines.tolist() == [3]


def test_two_byte_order_marks(tmp_path):
    table, findings = read(tmp_path, b"\xef\xbb\xbf\xef\xbb\xbfimage,label\na.png,x\n")
    assert table["image"].tolist() == ["a.png"]
    assert not list(findings)


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"PK\x03\x04rest", "spreadsheet"), (b"\xd0\xcf\x11\xe0\xa1\xb1", ".xls"), (b"\x1f\x8b\x08rest", "gzip")],
)
def test_a_spreadsheet_or_an_archive_is_named(tmp_path, content, word):
    with pytest.raises(DataError, match=word) as caught:
        read(tmp_path, content)
    assert "CSV" in caught.value.remedy


def test_a_comment_above_the_header_is_named(tmp_path):
    with pytest.raises(DataError, match="comment"):
        read(tmp_path, b"# exported 2026-01-01 08:00\nimage,label\na.png,x\n")


def test_an_optional_column_given_twice_is_refused_too(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image,label,patient_id,patient_id\na.png,x,1,2\n")
    with pytest.raises(DataError, match="patient_id"):
        read_table(path, Findings(), required=("image", "label"), optional=("patient_id",))
    assert len(read_table(path, Findings(), required=("image", "label"))) == 1


def test_several_files_that_fit_are_said(tmp_path):
    for name in ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"):
        (tmp_path / name).write_text("x")
    findings = Findings()
    patterns = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv")
    assert find_table(tmp_path, patterns, "table", findings).name == "Data_Entry_2017_v2020.csv"
    (found,) = findings
    assert (found.code, found.severity) == ("several-tables", "warning")
    assert "Data_Entry_2017_v2020.csv is read, Data_Entry_2017.csv is not" in found.message
    (tmp_path / "Data_Entry_2017.csv").unlink()
    again = Findings()
    find_table(tmp_path, patterns, "table", again)
    assert not list(again)
