"""Reading a table as a hospital or a publisher wrote it, with every fault found and located.

Text only: each cell is a stripped string, nothing is guessed into a number or a missing value. The separator
(comma, tab or semicolon) is the one that the header line holds most of. UTF-8 with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import DataError, MachineError

_SEPARATORS = (",", "\t", ";")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MARK = "\ufeff"
_NO_TEXT = {
    b"PK\x03\x04": "the file is a spreadsheet or an archive (zip), not a text table",
    b"\xd0\xcf\x11\xe0": "the file is an old spreadsheet (.xls), not a text table",
    b"\x1f\x8b": "the file is compressed (gzip), not a text table",
}
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # what some spreadsheets write above the header
_NO_ROWS = "Give it a first line with the names of the columns, and its rows below that."
# A column name; anything else in a header may be a row of data, and so the name of an image or of a patient.
_COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z_ #\[\](),/-]{0,40}[0-9]{0,2}\]?")


@dataclass(frozen=True)
class Table:
    """Columns of a file as object arrays ``(N,)`` of stripped strings, and the line each row starts at.

    Args:
        name: file name without folder, for findings.
        columns: column name to values; only what was asked for and found.
        lines: ``(N,)`` int64, 1-based line in the file.
        header: every column name in the file.
    """

    name: str
    columns: dict[str, np.ndarray]
    lines: np.ndarray
    header: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def take(self, which: np.ndarray) -> Table:
        """The rows that a mask or positions select."""
        return Table(self.name, {k: v[which] for k, v in self.columns.items()}, self.lines[which], self.header)

    def text(self, column: str) -> np.ndarray:
        """The values of an optional column; empty strings when the table has no such column."""
        return self.columns[column] if column in self.columns else np.full(len(self), "", dtype=object)


def find_table(root: Path, patterns: Sequence[str], what: str, findings: Findings | None = None) -> Path:
    """First file under ``root`` (then one folder down) that matches one of ``patterns``, in their order.

    Args:
        findings: says which file was taken where several fit.

    Raises:
        DataError: none is there; says which names were looked for.
    """
    for pattern in patterns:
        for prefix in ("", "*/"):
            found = sorted(
                path for path in root.glob(prefix + pattern) if path.is_file() and not path.name.startswith(".")
            )
            if found:
                _report_others(found, root, patterns, what, findings)
                return found[0]
    raise DataError(
        f"dataset.root holds no {what}; looked for {', '.join(patterns)} in it and one folder down",
        "Point dataset.root at the folder that holds this file, or choose another layout with dataset=NAME.",
    )


def _report_others(
    found: Sequence[Path], root: Path, patterns: Sequence[str], what: str, findings: Findings | None
) -> None:
    names = {
        path.name
        for pattern in patterns
        for prefix in ("", "*/")
        for path in root.glob(prefix + pattern)
        if path.is_file() and not path.name.startswith(".")
    }
    others = sorted(names - {found[0].name})
    if others and findings is not None:
        findings.add(
            "several-tables",
            "warning",
            f"several files fit as the {what}: {found[0].name} is read, {', '.join(others)} is not",
            table=found[0].name,
            count=len(names),
            remedy="Leave one of them under dataset.root.",
        )


def read_text(path: Path, findings: Findings) -> str | None:
    """The text of a UTF-8 file (byte order mark dropped); None, with a finding, when it is something else.

    Raises:
        MachineError: the file cannot be read at all.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MachineError(
            f"cannot read {path.name}: {error.strerror}", "Check that the file is there and readable."
        ) from None
    remedy = "Save the table again as UTF-8 (in a spreadsheet: 'CSV UTF-8')."
    if data.startswith(_UTF16):
        findings.add("encoding", "error", "the file is UTF-16, not UTF-8", table=path.name, count=1, remedy=remedy)
        return None
    for magic, message in _NO_TEXT.items():
        if data.startswith(magic):
            plain = "Export the table as CSV (UTF-8), unpacked, and name that file."
            findings.add("encoding", "error", message, table=path.name, count=1, remedy=plain)
            return None
    try:
        text = data.decode("utf-8").lstrip(_MARK)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        findings.add(
            "encoding",
            "error",
            "bytes that are not UTF-8 (first such line shown)",
            table=path.name,
            rows=[line],
            remedy=remedy,
        )
        return None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        findings.add(
            "encoding", "error", "a NUL byte: this is not a text table", table=path.name, rows=[line], remedy=remedy
        )
        return None
    return text


def read_table(
    path: Path,
    findings: Findings,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> Table:
    """Read the named columns of a table.

    Rows without any value are passed over. A row with a value outside the columns, or too short to hold a wanted
    column, is a finding: a misplaced separator would otherwise shift labels in silence.

    Raises:
        DataError: nothing of it can be used; lists what ``findings`` holds so far, with the reason.
        MachineError: the file cannot be read at all.
    """
    table = _read(path, findings, required, optional)
    if table is None:
        findings.raise_if_errors()
        raise AssertionError("a table that cannot be used has left an error")
    return table


def _read(path: Path, findings: Findings, required: Sequence[str], optional: Sequence[str]) -> Table | None:
    text = read_text(path, findings)
    if text is None:
        return None
    text, skipped, separator = _without_preamble(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for fields in reader:
            if any(map(str.strip, fields)):
                rows.append(fields)
                lines.append(start + skipped)
            start = reader.line_num + 1
    except csv.Error as error:
        message = f"cannot be read as a table from here on ({error}); look for a quotation mark that is not closed"
        remedy = "Close the quotation mark. One that is part of a quoted value is written twice."
        findings.add("malformed-table", "error", message, table=path.name, rows=[start + skipped], remedy=remedy)
        return None
    if not rows:
        findings.add("no-rows", "error", "the table is empty", table=path.name, count=0, remedy=_NO_ROWS)
        return None
    header = [name.strip() for name in rows[0]]
    if not _header_is_usable(header, required, optional, path.name, findings):
        return None
    where = {name: header.index(name) for name in [*required, *optional] if name in header}
    return _columns(path.name, header, rows[1:], lines[1:], where, findings)


def _without_preamble(text: str) -> tuple[str, int, str]:
    """The table without a spreadsheet's ``sep=;`` line above it, how many lines that was, and the separator."""
    body = text.lstrip("\r\n")
    first, _, rest = body.partition("\n")
    named = _SEPARATOR_LINE.fullmatch(first.strip())
    if named is not None:
        return rest, text[: len(text) - len(rest)].count("\n"), named[1]
    if first.strip().casefold() == "sep=":  # a tab, which was stripped
        return rest, text[: len(text) - len(rest)].count("\n"), "\t"
    return text, 0, max(_SEPARATORS, key=first.count)


def _header_is_usable(
    header: Sequence[str], required: Sequence[str], optional: Sequence[str], table: str, findings: Findings
) -> bool:
    missing = [name for name in required if name not in header]
    if missing:
        if all(_COLUMN_NAME.fullmatch(name) for name in header if name):
            there = f"there are: {', '.join(name for name in header if name)}"
        elif header[0].startswith("#"):
            there = "the first line is a comment (it begins with #); the column names must stand there"
        else:
            there = "the first line seems to hold data, not column names"
        message = f"missing column(s): {', '.join(missing)}; needed: {', '.join(required)}; {there}"
        findings.add(
            "missing-column",
            "error",
            message,
            table=table,
            rows=[1],
            field=", ".join(missing),
            count=len(missing),
            remedy="Name the columns in the first line exactly as above (lower and upper case matter).",
        )
    doubled = sorted({name for name in header if name and header.count(name) > 1} & {*required, *optional})
    if doubled:
        findings.add(
            "duplicate-column",
            "error",
            "column given twice, and nothing says which one is meant",
            table=table,
            rows=[1],
            field=", ".join(doubled),
            remedy="Keep the right one of the columns, or rename the other.",
        )
    return not missing and not doubled


def _columns(
    name: str, header: list[str], rows: list[list[str]], lines: list[int], where: dict[str, int], findings: Findings
) -> Table | None:
    width, needed = len(header), max(where.values()) + 1
    # A published header may itself hold unquoted separators (ChestX-ray14: "OriginalImage[Width,Height]"), which only
    # matters to the columns after it; values beyond the header's last column always mean a shifted row.
    fits = [needed <= len(row) and (len(row) <= width or not any(map(str.strip, row[width:]))) for row in rows]
    wrong = [line for line, ok in zip(lines, fits, strict=True) if not ok]
    if wrong:
        message = f"row(s) whose number of values does not fit the {width} columns of the header"
        remedy = "Quote values that hold the separator; give every row all columns."
        findings.add("malformed-table", "error", message, table=name, rows=wrong, remedy=remedy)
        rows = [row for row, ok in zip(rows, fits, strict=True) if ok]
        lines = [line for line, ok in zip(lines, fits, strict=True) if ok]
    if not rows:
        message = "the table has no usable row below its header"
        findings.add("no-rows", "error", message, table=name, count=0, remedy=_NO_ROWS)
        return None
    columns = {}
    for column, index in where.items():
        values = np.empty(len(rows), dtype=object)
        values[:] = [row[index].strip() for row in rows]
        columns[column] = values
    return Table(name, columns, np.asarray(lines, dtype=np.int64), tuple(header))


def check_filled(table: Table, columns: Sequence[str], findings: Findings) -> np.ndarray:
    """``(N,)`` bool: rows in which none of ``columns`` is empty; the others become findings."""
    filled = np.ones(len(table), dtype=bool)
    for column in columns:
        empty = table[column] == ""
        if empty.any():
            findings.add(
                "empty-value",
                "error",
                "empty value",
                table=table.name,
                rows=table.lines[empty],
                field=column,
                remedy="Fill in the empty values, or remove their rows.",
            )
        filled &= ~empty
    return filled
