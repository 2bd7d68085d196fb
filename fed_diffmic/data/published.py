"""DiffMIC's published splits (``diffmic_split.csv``): read, cross-checked against the data set's own labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.labels import split_names
from fed_diffmic.data.tables import Table, check_filled, find_table, read_table

SPLIT_FILE = "diffmic_split.csv"


def published_split(root: Path, table: Table, id_column: str, labels: np.ndarray, findings: Findings) -> np.ndarray:
    """``(N,)`` object: train or test for each row of ``table``, empty (a warning) where it is not named.

    Args:
        root: folder with :data:`SPLIT_FILE`, columns ``id_column``, ``label``, ``split``.
        table: the data set's own table, which has ``id_column`` too.
        labels: ``(N,)`` its class indices in the published order, -1 unknown.

    Raises:
        DataError: no such file, or one that cannot be read.
    """
    path = find_table(root, (SPLIT_FILE,), "published split (dataset.split=published)")
    split = read_table(path, findings, required=(id_column, "label", "split"))
    split = split.take(check_filled(split, (id_column, "label", "split"), findings))
    words = split_names(split["split"], lines=split.lines, table=split.name, findings=findings)
    position = {name: i for i, name in enumerate(split[id_column])}
    if len(position) < len(split):
        count = len(split) - len(position)
        findings.add(
            "duplicate-row", "error", "image named more than once", table=split.name, field=id_column, count=count
        )
    where = np.array([position.get(name, -1) for name in table[id_column]], dtype=np.int64)
    listed = where >= 0
    _cross_check(split, where, listed, labels, findings)
    report_unlisted(listed, table, id_column, split.name, findings)
    unmatched = len(position) - len(set(where[listed].tolist()))
    if unmatched:
        findings.add(
            "not-in-table",
            "warning",
            f"images of the split that {table.name} does not hold",
            table=split.name,
            field=id_column,
            count=unmatched,
        )
    result = np.full(len(table), "", dtype=object)
    result[listed] = words[where[listed]]
    return result


def report_unlisted(listed: np.ndarray, table: Table, id_column: str, split_name: str, findings: Findings) -> None:
    """Say how many rows of the table the published split does not name; they are left out."""
    if not listed.all():
        findings.add(
            "not-in-split",
            "warning",
            f"images that {split_name} does not name; left out, as they are in neither part",
            table=table.name,
            rows=table.lines[~listed],
            field=id_column,
            names=table[id_column][~listed],
        )


def _cross_check(split: Table, where: np.ndarray, listed: np.ndarray, labels: np.ndarray, findings: Findings) -> None:
    own = np.array([int(text) if text.isdecimal() else -2 for text in split["label"]], dtype=np.int64)
    unlike = np.zeros(len(where), dtype=bool)
    unlike[listed] = (own[where[listed]] != labels[listed]) & (labels[listed] >= 0)
    if unlike.any():
        findings.add(
            "split-label-mismatch",
            "error",
            "the split's label is not that of the data set's own table: they do not belong together",
            table=split.name,
            rows=split.lines[where[unlike]],
            field="label",
            remedy="Use the split and the table of one edition of the data set.",
        )
