"""Labels from a hospital's own table, found by accession number or SOP instance UID; what does not match is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.tables import Table, check_filled, read_table
from fed_diffmic.errors import DataError

COLUMNS = {
    "accession": ("accession", "accession_number", "AccessionNumber", "Accession Number"),
    "sop": ("sop_instance_uid", "SOPInstanceUID", "SOP Instance UID", "sop"),
}
"""Names of the column that finds an image, by ``dicom.join``."""


@dataclass(frozen=True)
class Labels:
    """Labels by what finds them.

    Attributes:
        join: ``accession`` or ``sop``.
        of: key to label.
        table: name of the table, for findings.
        contradicting: keys that stand under two labels; no label can be trusted.
    """

    join: str
    of: dict[str, str] = field(repr=False)
    table: str
    contradicting: frozenset[str] = field(repr=False)


def read_labels(path: Path, join: str, column: str, findings: Findings) -> Labels:
    """Read the table.

    Args:
        path: CSV or TSV with one column that finds an image and one that holds its label.
        join: ``auto``, ``accession`` or ``sop``.
        column: name of the label's column.

    Raises:
        DataError: no such columns, or nothing usable.
        MachineError: the file cannot be read.
    """
    kinds: Sequence[str] = tuple(COLUMNS) if join == "auto" else (join,)
    wanted = [name for kind in kinds for name in COLUMNS[kind]]
    try:
        table = read_table(path, findings, required=(column,), optional=wanted)
    except DataError as error:
        if not any(item.code == "missing-column" for item in findings.errors):
            raise
        more = "If another column holds the label, say dicom.label_column=NAME."
        raise DataError(error.cause, f"{error.remedy} {more}") from None
    found = _key_column(table, kinds)
    filled = check_filled(table, (found[1], column), findings)
    findings.raise_if_errors()
    table = table.take(filled)
    keys, labels = table[found[1]], table[column]
    first: dict[str, str] = {}
    again = np.zeros(len(table), dtype=bool)
    contradicting: set[str] = set()
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        again[i] = key in first
        if first.setdefault(key, label) != label:
            contradicting.add(key)
    torn = np.isin(keys, sorted(contradicting))
    _say_doubled(table.name, found[1], table.lines, keys, again & ~torn, torn, findings)
    of = {key: label for key, label in first.items() if key not in contradicting}
    return Labels(found[0], of, table.name, frozenset(contradicting))


def _key_column(table: Table, kinds: Sequence[str]) -> tuple[str, str]:
    """What finds an image, and the name of its column here."""
    there = [(kind, name) for kind in kinds for name in COLUMNS[kind] if name in table]
    if len({kind for kind, _ in there}) > 1:
        raise DataError(
            f"{table.name} holds both an accession number and a SOP instance UID ({', '.join(n for _, n in there)})",
            "Say which one finds the label: dicom.join=accession or dicom.join=sop.",
        )
    if not there:
        names = "; or ".join(f"{kind}: {', '.join(COLUMNS[kind])}" for kind in kinds)
        raise DataError(
            f"{table.name} has no column that finds an image (looked for {names})",
            "Name such a column in its first line exactly so (lower and upper case matter).",
        )
    return there[0]


def _say_doubled(
    table: str,
    column: str,
    lines: np.ndarray,
    keys: np.ndarray,
    again: np.ndarray,
    torn: np.ndarray,
    findings: Findings,
) -> None:
    if again.any():
        findings.add(
            "duplicate-row",
            "warning",
            f"{int(again.sum())} rows repeat an earlier one of the same label; each counts once",
            table=table,
            rows=lines[again],
            field=column,
            names=keys[again],
        )
    if torn.any():
        findings.add(
            "contradicting-labels",
            "warning",
            f"{len(set(keys[torn]))} keys stand under different labels, in {int(torn.sum())} rows; their images are "
            "left out, since no label can be trusted",
            table=table,
            rows=lines[torn],
            field=column,
            names=keys[torn],
            remedy="Find out which label is right and keep that row; several labels belong in one row, as 'A|B'.",
        )
