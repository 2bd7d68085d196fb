"""Subgroups of a table's images (``dataset.subgroups``): sex, age band, scanner, whatever column the site names.

Of each image one text is kept, ``COLUMN=VALUE`` joined by ``|``. A column whose name begins with ``age`` becomes bands
of twenty years, the same at every site; any other column must hold few values, or it may be one of names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.tables import Table

JOINED, UNKNOWN = "|", "unknown"
MOST_VALUES, LONGEST = 20, 40
_EDGES = (20, 40, 60, 80)
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
        values = [_value(column, value) for value in table[column]]
        if len(set(values)) > MOST_VALUES:
            said = f"{len(set(values))} different values: this does not look like subgroups"
            _report(findings, table, column, said, f"Give a column of at most {MOST_VALUES} values, such as bands.")
            continue
        for text, value in zip(texts, values, strict=True):
            text.append(f"{_PLAIN.sub('_', column)}={value}")
    return np.array([JOINED.join(text) for text in texts], dtype=object)


def _value(column: str, text: str) -> str:
    if column.lower().startswith("age"):
        try:
            years = float(text)
        except ValueError:
            return UNKNOWN
        below = [0, *_EDGES][sum(years >= edge for edge in _EDGES)]
        return f"{below} or more" if years >= _EDGES[-1] else f"{below} to {below + 19}" if years >= 0 else UNKNOWN
    return _PLAIN.sub("_", text.strip())[:LONGEST] or UNKNOWN


def _report(findings: Findings, table: Table, column: str, said: str, remedy: str) -> None:
    findings.add("no-subgroups", "error", said, table=table.name, field=column, count=len(table), remedy=remedy)
