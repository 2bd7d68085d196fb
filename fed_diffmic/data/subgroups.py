"""Subgroups of a table's images (``dataset.subgroups``): sex, age band, scanner, whatever column the site names.

Of each image one text is kept, ``COLUMN=VALUE`` joined by ``|``. A column whose name begins with ``age`` becomes bands
of twenty years, the same at every site; any other column must hold few values, or it may be one of names.

An age is a number of years, DICOM's (``045Y``, ``011M``), or a band that lies in one of ours (``40-49`` and ``90+``, as
the table of ``data from-dicom`` holds them). What is filled and is none of these is unknown, and said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.tables import Table

JOINED, UNKNOWN = "|", "unknown"
MOST_VALUES, LONGEST = 20, 40
_EDGES = (20, 40, 60, 80)
_BAND = re.compile(r"(\d{1,3}) ?(?:-|\u2013|to) ?(\d{1,3})")
_OPEN = re.compile(r"(\d{1,3}) ?(?:\+|or more)")
_DICOM = re.compile(r"(\d{3})([DWMY])")
_IN_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_BANDS = "0 to 19, 20 to 39, 40 to 59, 60 to 79, 80 or more"
_PLAIN = re.compile(r"[^\w .+<>-]")


def subgroup_texts(table: Table, columns: Sequence[str], findings: Findings) -> np.ndarray:
    """What each row says of its subgroups, ``(N,)``; empty texts where no column is asked for.

    A column that is not there, or holds more than :data:`MOST_VALUES` values, is a finding, an error.
    """
    texts: list[list[str]] = [[] for _ in range(len(table))]
    for column in columns:
        if column not in table:
            _report(findings, table, column, "there is no such column", "Name a column of the table, or leave it out.")
            continue
        ages = column.lower().startswith("age")
        values = [_band(value.strip()) if ages else _value(value) for value in table[column]]
        if ages:
            _report_ages(findings, table, column, values)
        if len(set(values)) > MOST_VALUES:
            said = f"{len(set(values))} different values: this does not look like subgroups"
            _report(findings, table, column, said, f"Give a column of at most {MOST_VALUES} values, such as bands.")
            continue
        for text, value in zip(texts, values, strict=True):
            text.append(f"{_PLAIN.sub('_', column)}={value}")
    return np.array([JOINED.join(text) for text in texts], dtype=object)


def _value(text: str) -> str:
    return _PLAIN.sub("_", text.strip())[:LONGEST] or UNKNOWN


def _band(text: str) -> str:
    """The band of twenty years of an age, or of a band that lies in it."""
    youngest, oldest = _years(text)
    below = [0, *_EDGES][sum(youngest >= edge for edge in _EDGES)]
    if not 0 <= youngest <= oldest or (below < _EDGES[-1] and oldest >= below + 20):
        return UNKNOWN
    return f"{below} or more" if below == _EDGES[-1] else f"{below} to {below + 19}"


def _years(text: str) -> tuple[float, float]:
    """Youngest and oldest that a text says, in years; not a number where it says none."""
    if found := _BAND.fullmatch(text):
        return float(found[1]), float(found[2])
    if found := _OPEN.fullmatch(text):
        return float(found[1]), math.inf
    if found := _DICOM.fullmatch(text):
        return (float(found[1]) / _IN_YEAR[found[2]],) * 2
    try:
        return (float(text),) * 2
    except ValueError:
        return (math.nan,) * 2


def _report_ages(findings: Findings, table: Table, column: str, values: Sequence[str]) -> None:
    unread = np.array([value == UNKNOWN for value in values], dtype=bool) & (table[column] != "")
    if unread.any():
        findings.add(
            "age-not-read",
            "warning",
            f"{int(unread.sum())} of {len(table)} ages are no number of years, and no band within {_BANDS}; they count "
            f"as {UNKNOWN}",
            table=table.name,
            rows=table.lines[unread],
            field=column,
            remedy="Write ages as numbers of years, or as bands that lie within these.",
        )


def _report(findings: Findings, table: Table, column: str, said: str, remedy: str) -> None:
    findings.add("no-subgroups", "error", said, table=table.name, field=column, count=len(table), remedy=remedy)
