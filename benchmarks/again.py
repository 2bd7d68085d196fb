"""What an experiment says now that it was run again, beside what it said before, written into a page.

    python -m benchmarks.again PAGE BEFORE AFTER [--name NAME] [--split external]

``BEFORE`` and ``AFTER`` are folders of ``fed-diffmic experiment run --out`` of one experiment; cells that one of them
lacks are left out, and how many are left is said. A row for each arm (mean over its sites) and each site of it, and
for each value of axes other than seed and fold: test metrics before and after, means over the cells, and the difference
with its least and its largest of a cell. ``--split external``: those of the test sets from elsewhere, a row for each
model. Everything between ``<!-- again NAME -->`` and ``<!-- end of again NAME -->`` is replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from benchmarks.pages import fill
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from simulations.experiments.answer import NAMES, table
from simulations.experiments.compare import METRICS
from simulations.experiments.definition import FOLD
from simulations.experiments.runner import read_index
from simulations.experiments.table import tidy_table

MARK = "again"
PLACE = ["arm", "site"]


def lines(before: Path, after: Path, split: str = "test") -> list[str]:
    """The table, and how many cells it rests on.

    Raises:
        UsageError: one is no experiment, or they have no finished cell in common.
    """
    first, second = (_metrics(out, split) for out in (before, after))
    place = [name for name in first.columns[1:-2] if name in second]
    both = pd.merge(first, second, on=["cell", *place, "metric"], suffixes=("_before", "_after"))
    if both.empty:
        raise UsageError(f"{before} and {after} have no finished cell in common", "Name two folders of one experiment.")
    both["change"] = both["value_after"] - both["value_before"]
    rows = []
    for values, part in both.groupby(place, sort=False):
        rows.append([*(str(value) for value in values), *(text for m in METRICS for text in _cells(part, m))])
    heads = [text for metric in METRICS for text in (f"{NAMES[metric]}, before", "after", "difference")]
    cells = both["cell"].nunique()
    said = (
        f"Means over {cells} cells that both have, of each cell's own test images; in brackets the least and largest "
        "difference of a cell."
    )
    return [*table((*place, *heads), rows), said]


def _metrics(out: Path, split: str) -> pd.DataFrame:
    found = tidy_table(out)
    wanted = found[(found["split"] == split) & found["metric"].isin(METRICS) & (found["site"] != "all")]
    axes = [axis for axis in read_index(out)["axes"] if axis not in ("seed", FOLD)]
    return wanted[["cell", *axes, *PLACE, "metric", "value"]].dropna()


def _cells(part: pd.DataFrame, metric: str) -> list[str]:
    of = part[part["metric"] == metric]
    if of.empty:
        return ["-"] * 3
    change = f"{of['change'].mean():+.3f} ({of['change'].min():+.3f} to {of['change'].max():+.3f})"
    return [f"{of['value_before'].mean():.3f}", f"{of['value_after'].mean():.3f}", change]


def main() -> int:
    """Read the arguments and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--split", choices=("test", "external"), default="test")
    given = parser.parse_args()
    fill(given.page, MARK, lambda: lines(given.before, given.after, given.split), given.name)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
