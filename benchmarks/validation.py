"""Write what validation images say of an experiment's methods into a page, between its two marks.

    python -m benchmarks.validation PAGE DIR [DIR ...] [--name NAME]

``DIR`` is a folder of ``fed-diffmic experiment run --out``. A method's row is the mean over its finished cells, which
are named, of what the federation's model reached on validation images in the round that was kept. It is for choosing:
no figure of a test image is looked at. Everything between ``<!-- validation -->`` and ``<!-- end of validation -->``
is replaced (with a name: ``<!-- validation NAME -->``); nothing of it is typed.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import fill
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from fed_diffmic.files import read_json
from simulations.experiments.answer import table
from simulations.experiments.runner import CELLS, read_index

MARK = "validation"
WANTED = (
    ("mean", "auroc_macro", "macro AUROC, mean over sites"),
    ("global", "auroc_macro", "macro AUROC, all images"),
    ("mean", "balanced_accuracy", "balanced accuracy, mean over sites"),
    ("global", "balanced_accuracy", "balanced accuracy, all images"),
)


def lines(folders: Sequence[Path]) -> list[str]:
    """The table, a row a method, in the order of the folders and of their cells.

    Raises:
        UsageError: a folder holds no experiment, no cell is finished, or two are the same one of a method.
    """
    values: dict[str, list[list[float]]] = defaultdict(list)
    cells: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        for cell in read_index(folder)["cells"]:
            path = folder / CELLS / cell["name"] / "summary.json"
            if path.exists():
                place = dict(cell["place"])
                method = place.pop("method", "-")
                of = " ".join(f"{axis} {value}" for axis, value in place.items())
                if of in cells[method]:
                    raise UsageError(f"{folder}: {method}, {of}, is in another folder too", "Name one of the two.")
                values[method].append(_values(read_json(path)))
                cells[method].append(of)
    if not values:
        raise UsageError("no cell of these experiments is finished", "Let them go on.")
    rows = [
        [method, "; ".join(cells[method]), *("-" if np.isnan(x) else f"{x:.3f}" for x in np.mean(found, axis=0))]
        for method, found in values.items()
    ]
    return table(["method", "of", *(title for *_, title in WANTED)], rows)


def _values(summary: dict[str, Any]) -> list[float]:
    found = [summary[place]["val"][metric]["value"] for place, metric, _ in WANTED]
    return [float("nan") if value is None else value for value in found]


def main() -> int:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--name", default="", help="of the marks, where a page has several tables")
    given = parser.parse_args()
    fill(given.page, MARK, lambda: lines(given.folders), given.name)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
