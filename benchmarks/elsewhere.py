"""Write what models were worth on patients from elsewhere into a page: one row for each model and test set.

    python -m benchmarks.elsewhere PAGE DIR [DIR ...]

Each ``DIR`` is the folder of ``fed-diffmic experiment run --out`` with ``external.NAME=FILE``. Everything between
``<!-- elsewhere -->`` and ``<!-- end of elsewhere -->`` is replaced; nothing of it is typed. Seeds that an experiment
has not finished are left out; how intervals are made: :mod:`simulations.experiments.elsewhere`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.pages import put, rewrite
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from simulations.experiments.answer import NAMES, gap_text, table
from simulations.experiments.compare import REFERENCES
from simulations.experiments.elsewhere import Elsewhere
from simulations.experiments.gather import elsewhere
from simulations.experiments.report import number

MARK = "elsewhere"


def lines(folders: Sequence[Path]) -> list[str]:
    """What it comes to in a sentence, and the table.

    Raises:
        UsageError: a folder holds no experiment, or none that was judged elsewhere.
    """
    found: list[Elsewhere] = []
    for folder in folders:
        tables = [one for _, tables in elsewhere(folder) for one in tables]
        if not tables:
            raise UsageError(
                f"{folder}: no finished run was judged elsewhere", "Give external.NAME=FILE, let it go on."
            )
        found += tables
    rows = [row for one in found for row in _rows(one)]
    head = ["from elsewhere", "images", "classes", "seeds", "model", *NAMES.values()]
    return [*_said(found), "", *table([*head, *(f"global minus it, {name}" for name in NAMES.values())], rows)]


def _global(one: Elsewhere) -> str:
    return next(model for model, _ in one.values if model.partition("/")[0] not in REFERENCES)


def _rows(one: Elsewhere) -> list[list[str]]:
    main = _global(one)
    told = [one.name, f"{one.images:,}", " ".join(one.classes), ", ".join(one.seeds)]
    rows = []
    for model in dict.fromkeys(model for model, _ in one.values):
        metrics = [number(one.values[model, metric]) for metric in NAMES]
        gaps = [gap_text(one.gaps.get((main, model, metric))) if model != main else "" for metric in NAMES]
        rows.append([*told, model, *metrics, *gaps])
    return rows


def _said(found: Sequence[Elsewhere]) -> list[str]:
    """How often the global model stands above a local one, in words."""
    parts = []
    for metric, name in NAMES.items():
        gaps = [
            gap
            for one in found
            for (method, other, kind), gap in one.gaps.items()
            if (method, kind) == (_global(one), metric) and other.startswith("local/")
        ]
        counted = {verdict: sum(gap.verdict == verdict for gap in gaps) for verdict in ("above", "below", "not shown")}
        parts.append(
            f"{name}: above in {counted['above']}, below in {counted['below']}, not shown in {counted['not shown']} of "
            f"{len(gaps)} (mean difference {np.mean([gap.mean for gap in gaps]):+.3f})"
        )
    return [f"**The global model against each site's own, on patients of neither: {'; '.join(parts)}.**"]


def main() -> int:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    text = lines(given.folders)
    rewrite(given.page, lambda page: put(page, MARK, text))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
