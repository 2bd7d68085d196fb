"""Operating points of each class over all sites' test images, from counts by cell that sites add.

A site counts, class by class, how many test images with and without the class have a calibrated probability in each
cell of a fixed grid (equal steps of log-odds). Before the counts leave, those of few images are moved to the side that
promises less: images with the class down, images without it up (:func:`told`). So what the sums give is never better
than the sites' images are at the cells' edges, and is a little worse than the same from the scores themselves.

What this does not hide: a count is of enough images, but it lies in the cell of the outermost of them, so that one
image's score is told to the width of a cell; and all images of a count may be one patient's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import logit

from fed_diffmic.training.few import OWNERS, Row, moved
from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY, operating_points, positive_of
from fed_diffmic.training.metrics import Scored

PREFIX = "points/"
STEP, EDGE = 0.25, 10.0
CELLS = int(2 * EDGE / STEP) + 2
"""Cells of the grid: log-odds from -10 to 10 in steps of a quarter, and one beyond each end."""
WITHOUT, WITH = "0", "1"
Sides = dict[str, Row]


def cells_of(probabilities: np.ndarray) -> np.ndarray:
    """The cell of each probability, ``0`` to ``CELLS - 1``, larger for larger ones."""
    odds = logit(np.clip(np.asarray(probabilities, dtype=np.float64), 1e-12, 1 - 1e-12))
    return np.clip(np.floor((odds + EDGE) / STEP).astype(np.int64) + 1, 0, CELLS - 1)


def site_points(scored: Scored, classes: int) -> dict[str, float]:
    """A site's half: ``points/<class>/<0|1>/<cell>``, and how many patients are behind each, which stay at the site."""
    found: dict[str, float] = {}
    for c in range(classes):
        cells, positive = cells_of(scored.probabilities[:, c]), positive_of(scored, c)
        for kind, rows in ((WITHOUT, ~positive), (WITH, positive)):
            for cell, count in zip(*np.unique(cells[rows], return_counts=True), strict=True):
                found[f"{PREFIX}{c}/{kind}/{cell}"] = float(count)
            if rows.any():
                found[f"{OWNERS}{PREFIX}{c}/{kind}"] = float(len(np.unique(scored.groups[rows])))
    return found


def told(metrics: Mapping[str, float], least: int, patients: int, hidden: Sequence[str]) -> dict[str, float]:
    """What may leave of a site's counts, other metrics as they are but for the numbers of patients.

    A class is told whole or not at all: not where its images, or those without it, are fewer than ``least`` or of fewer
    patients than ``patients``, nor where its count is kept back (``hidden``), which these would give away.

    Args:
        metrics: flat, among others from :func:`site_points`.
        least: images behind each count.
        patients: behind each side of a class.
        hidden: indexes of classes whose count of test images does not leave.
    """
    out = {name: value for name, value in metrics.items() if not name.startswith((PREFIX, OWNERS))}
    for index, sides in _tables(metrics).items():
        owners = [metrics.get(f"{OWNERS}{PREFIX}{index}/{kind}", 0) for kind in (WITHOUT, WITH)]
        sizes = [sum(sides.get(kind, {}).values()) for kind in (WITHOUT, WITH)]
        if index in hidden or min(sizes) < max(1, least) or min(owners) < patients:
            continue
        for kind, row in sides.items():
            kept = moved(row, least, down=kind == WITH)
            out |= {f"{PREFIX}{index}/{kind}/{cell}": count for cell, count in kept.items()}
    return out


def owners_of(metrics: Mapping[str, float], index: str) -> int:
    """Patients with test images of a class, as :func:`site_points` counted them; as many as images where it did not."""
    return int(metrics.get(f"{OWNERS}{PREFIX}{index}/{WITH}", metrics.get(f"test/positives/{index}", 0)))


def points_from(metrics: Mapping[str, float], classes: Sequence[str]) -> dict[str, dict[str, list[list[float]]]]:
    """The counts that a site let out, class -> side -> ``[[cell, count], ...]``; what is no such count is left out."""
    found = {}
    for index, sides in _tables(metrics).items():
        if int(index) < len(classes) and set(sides) == {WITHOUT, WITH}:
            rows = {kind: [[cell, count] for cell, count in sorted(row.items())] for kind, row in sides.items()}
            found[classes[int(index)]] = rows
    return found


def with_points(cell: dict[str, Any], metrics: Mapping[str, float], classes: Sequence[str]) -> dict[str, Any]:
    """A cell of the matrix with the counts that its site let out, if it did."""
    found = points_from(metrics, classes)
    return {**cell, "points": found} if found else cell


def pooled_points(cells: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Operating points of each class over the sites that told it, without intervals.

    Args:
        cells: of the matrix, by site; counts are under ``points`` (:func:`points_from`).
        classes: names.

    Returns:
        class -> ``sites``, ``n``, ``positives`` and both points as ``{value, low, high}``; classes of which no site
        told are left out. How patients with several images lie over the cells nobody knows, so there is no interval.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in classes:
        told_by = sorted(site for site, cell in cells.items() if name in (cell.get("points") or {}))
        rows = [
            (float(cell), count, kind == WITH)
            for site in told_by
            for kind, row in cells[site]["points"][name].items()
            for cell, count in row
        ]
        if not rows:
            continue
        scores, counts, positive = (np.array(column) for column in zip(*rows, strict=True))
        point = operating_points(scores, positive, counts[:, None])[:, 0]
        each = {AT_SPECIFICITY: float(point[0]), AT_SENSITIVITY: float(point[1])}
        total = {"sites": told_by, "n": int(counts.sum()), "positives": int(counts[positive].sum())}
        found[name] = total | {key: {"value": value, "low": None, "high": None} for key, value in each.items()}
    return found


def _tables(metrics: Mapping[str, float]) -> dict[str, Sides]:
    """Counts by class and side; a name that is none, or a cell beyond the grid, is left out."""
    tables: defaultdict[str, Any] = defaultdict(dict)
    for name, value in metrics.items():
        if not name.startswith(PREFIX):
            continue
        parts = name.removeprefix(PREFIX).split("/")
        whole = len(parts) == 3 and all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts)
        if whole and parts[1] in (WITHOUT, WITH) and int(parts[2]) < CELLS and value > 0:
            tables[str(int(parts[0]))].setdefault(parts[1], {})[int(parts[2])] = value
    return dict(sorted(tables.items()))
