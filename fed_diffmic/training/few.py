"""Counts of validation images by cell, as they may leave a site: no number of fewer images than the site allows.

Nor any of images of fewer patients, as far as a class goes: many images of one patient would tell that patient's.

A count of one image in one cell would tell that image's score to the width of a cell. So

- a class (multi-label: a state of a label) that has too few images or patients is not told apart: its images are
  counted under ``rest``, with others so that nothing can be had by subtraction (:func:`suppress`);
- what is left is moved to few cells, each of enough images, and **always to the side that promises less**: scores of
  prediction sets up (sets grow, coverage stays), the uncertainty of wrong predictions down and of right ones up (a
  measure looks worse than it is).

Names of the counts: :mod:`fed_diffmic.training.sureness`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from fed_diffmic.training.conformal import CELLS

SETS, UNSURE, REST, WRONG = "sets", "unsure", "rest", "1"
OWNERS = "owners/"
"""What the names of numbers of patients begin with, by which counts are judged at the site; they never leave it."""
Row = dict[int, float]


def suppress(
    counts: Sequence[int], least: int, owners: Sequence[int] | None = None, patients: int = 0
) -> list[int | None]:
    """Counts, with none for those of too few images or patients, and no suppressed count to be had by subtraction.

    Who knows the total could compute a single suppressed count from the others. So the next smallest counts are
    suppressed too until what is hidden is at least two counts, and together at least ``least`` images and ``patients``
    patients (secondary suppression as in disclosure control; Hundepool et al., Statistical Disclosure Control, 2012,
    chapter 4). A patient may be behind several counts: those hidden have as many together as the largest of them.

    Args:
        counts: images of each; one of 0 stays.
        least: images.
        owners: patients behind each count; none: as many as images.
        patients: the least of them.
    """
    owners = counts if owners is None else owners
    sizes = list(zip(counts, owners, strict=True))
    hidden = {i for i, (n, own) in enumerate(sizes) if n > 0 and (n < least or own < patients)}
    others = sorted((n, i) for i, n in enumerate(counts) if n > 0 and i not in hidden)
    while hidden and others:
        enough = sum(counts[i] for i in hidden) >= least and max(owners[i] for i in hidden) >= patients
        if len(hidden) > 1 and enough:
            break
        hidden.add(others.pop(0)[1])
    return [None if i in hidden else n for i, n in enumerate(counts)]


def without_owners(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without the numbers of patients that stay at the site (:data:`OWNERS`)."""
    return {name: value for name, value in metrics.items() if not name.startswith(OWNERS)}


def told(metrics: Mapping[str, float], least: int, patients: int, *, summed: bool = False) -> dict[str, float]:
    """Metrics in which no count by cell is one of fewer than ``least`` images, and no state one of few patients.

    Metrics that are no counts stay, but for :data:`OWNERS`.

    Args:
        metrics: flat, of at least ``least`` images and ``patients`` patients in all. A state without its number of
            patients is taken for one of none.
        least: images; 1 or less: the count of no cell is moved.
        patients: the least behind a state, or behind right or wrong predictions.
        summed: they leave in a sum with those of other sites alone. A measure of uncertainty is then told whatever the
            numbers of right and wrong predictions: the weights decide these, and whoever chose the weights would choose
            so of how few sites the sum is. Of few predictions only how many there are is told: all lie in the last
            cell.
    """
    out: dict[str, float] = {}
    tables: defaultdict[tuple[str, ...], defaultdict[str, Row]] = defaultdict(lambda: defaultdict(dict))
    for name, value in without_owners(metrics).items():
        parts = name.split("/")
        if parts[0] in (SETS, UNSURE) and len(parts) >= 4:
            tables[tuple(parts[:-2])][parts[-2]][int(parts[-1])] = value
        else:
            out[name] = value
    for head, rows in tables.items():
        states = sorted(rows)
        sizes = [int(sum(rows[state].values())) for state in states]
        owners = [int(metrics.get(OWNERS + "/".join([*head, state]), 0)) for state in states]
        if head[0] == UNSURE and summed:
            enough = [n >= least and own >= patients for n, own in zip(sizes, owners, strict=True)]
            last = {state: 0 if state == WRONG else CELLS for state in states}
            kept = {s: rows[s] if e else {last[s]: float(n)} for s, n, e in zip(states, sizes, enough, strict=True)}
        else:
            shown = suppress(sizes, least, owners, patients)
            if head[0] == UNSURE and None in shown:
                continue
            kept = {state: rows[state] for state, count in zip(states, shown, strict=True) if count is not None}
            hidden = [rows[state] for state, count in zip(states, shown, strict=True) if count is None]
            if hidden:
                kept[REST] = {cell: sum(row.get(cell, 0) for row in hidden) for row in hidden for cell in row}
        for state, row in kept.items():
            down = head[0] == UNSURE and state == WRONG
            out |= {"/".join([*head, state, str(cell)]): n for cell, n in moved(row, least, down=down).items()}
    return out


def moved(row: Mapping[int, float], least: int, *, down: bool = False) -> Row:
    """Counts by cell, moved up (or down) so that each cell that holds any holds at least ``least``.

    Args:
        row: count of each cell; in all at least ``least``, else everything lies in the last cell.
    """
    found: Row = {}
    edge, held = -1, 0.0
    for cell in sorted((c for c, n in row.items() if n), reverse=not down):
        edge = cell if held == 0 else edge
        held += row[cell]
        if held >= least:
            found[edge] = held
            last, held = edge, 0.0
    if held:
        at = last if found else edge
        found[at] = found.get(at, 0.0) + held
    return found
