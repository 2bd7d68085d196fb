"""Counts of validation images by cell, as they may leave a site: no number of fewer images than the site allows.

A count of one image in one cell would tell that image's score to the width of a cell. So

- a class (multi-label: a state of a label) that has too few images is not told apart: its images are counted under
  ``rest``, with others so that nothing can be had by subtraction (:func:`suppress`);
- what is left is moved to few cells, each of enough images, and **always to the side that promises less**: scores of
  prediction sets up (sets grow, coverage stays), the uncertainty of wrong predictions down and of right ones up (a
  measure looks worse than it is).

Names of the counts: :mod:`fed_diffmic.training.sureness`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

SETS, UNSURE, REST, WRONG = "sets", "unsure", "rest", "1"
Row = dict[int, float]


def suppress(counts: Sequence[int], least: int) -> list[int | None]:
    """Counts, with none for those from 1 to below ``least``, and no suppressed count to be had by subtraction.

    Who knows the total could compute a single suppressed count from the others. So the next smallest counts are
    suppressed too until what is hidden is at least two counts and at least ``least`` images together (secondary
    suppression as in disclosure control; Hundepool et al., Statistical Disclosure Control, 2012, chapter 4).
    """
    hidden = {i for i, n in enumerate(counts) if 0 < n < least}
    others = sorted((n, i) for i, n in enumerate(counts) if n >= least and n > 0)
    while hidden and (len(hidden) < 2 or sum(counts[i] for i in hidden) < least) and others:
        hidden.add(others.pop(0)[1])
    return [None if i in hidden else n for i, n in enumerate(counts)]


def told(figures: Mapping[str, float], least: int) -> dict[str, float]:
    """Figures in which no count by cell is one of fewer than ``least`` images; those that are no counts stay.

    Args:
        figures: flat, of at least ``least`` images in all.
        least: images; 1 or less: every count stays as it is.
    """
    if least <= 1:
        return dict(figures)
    out: dict[str, float] = {}
    tables: defaultdict[tuple[str, ...], defaultdict[str, Row]] = defaultdict(lambda: defaultdict(dict))
    for name, value in figures.items():
        parts = name.split("/")
        if parts[0] in (SETS, UNSURE) and len(parts) >= 4:
            tables[tuple(parts[:-2])][parts[-2]][int(parts[-1])] = value
        else:
            out[name] = value
    for head, rows in tables.items():
        states = sorted(rows)
        shown = suppress([int(sum(rows[state].values())) for state in states], least)
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
