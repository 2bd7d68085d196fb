"""Write what models were worth on patients from elsewhere into a page: one row for each model and test set.

    python -m benchmarks.elsewhere PAGE DIR [DIR ...]

Each ``DIR`` is the folder of ``fed-diffmic experiment run --out`` with ``external.NAME=FILE``. Everything between
``<!-- elsewhere -->`` and ``<!-- end of elsewhere -->`` is replaced, and between ``<!-- elsewhere short -->`` and its
end by a row for each test set, whichever of them the page has; nothing of it is typed. Seeds that an experiment has not
finished are left out; how intervals are made: :mod:`simulations.experiments.elsewhere`. A star: also after Holm's
correction over all comparisons with a site's own model by the same metric.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pages import put, rewrite
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from simulations.experiments.answer import COUNTED, NAMES, STAR, gap_text, table
from simulations.experiments.compare import REFERENCES, Difference, corrected
from simulations.experiments.elsewhere import Elsewhere
from simulations.experiments.gather import elsewhere
from simulations.experiments.report import number

MARK = "elsewhere"


def judged(folders: Sequence[Path]) -> list[Elsewhere]:
    """All test sets from elsewhere, differences to sites' own models corrected for how many there are.

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
    for metric in NAMES:
        gaps = {(place, key): one.gaps[key] for place, one in enumerate(found) for key in _local(one, metric)}
        for (place, key), gap in corrected(gaps).items():
            found[place] = replace(found[place], gaps={**found[place].gaps, key: gap})
    return found


def _local(one: Elsewhere, metric: str) -> list[tuple[str, str, str]]:
    """Keys of the differences of the global model from each site's own by a metric."""
    return [key for key in one.gaps if (key[0], key[2]) == (_global(one), metric) and key[1].startswith("local/")]


def lines(found: Sequence[Elsewhere]) -> list[str]:
    """What it comes to in a sentence, and the table."""
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


def short_lines(found: Sequence[Elsewhere]) -> list[str]:
    """The sentence, and a row for each test set: means over the seeds, whose spread the long table has."""
    rows = []
    for one in found:
        row = [one.name, f"{one.images:,}", ", ".join(one.classes), ", ".join(one.seeds)]
        for metric in NAMES:
            own = [
                f"{key[1].removeprefix('local/')} {one.values[key[1:]].mean():.3f} ({_verdict(one.gaps[key])})"
                for key in _local(one, metric)
            ]
            pooled = one.values.get(("pooled", metric))
            ours = one.values[_global(one), metric].mean()
            row += [f"{ours:.3f}", ", ".join(own), "-" if pooled is None else f"{pooled.mean():.3f}"]
        rows.append(row)
    columns = [f"{what}, {name}" for name in NAMES.values() for what in ("global", "each site's own", "pooled")]
    head = ["patients of", "images", "classes that count", "seeds", *columns]
    return [*_said(found), "", *table(head, rows), COUNTED]


def _verdict(gap: Difference) -> str:
    """Where the global model stands against another, starred where that outlasts the correction."""
    return f"{gap.verdict}{STAR if gap.outlasts else ''}"


def _counted(gaps: Sequence[Difference]) -> str:
    """``above in 8 (5★), below in 0, not shown in 4 of 12``."""
    counted = {verdict: sum(gap.verdict == verdict for gap in gaps) for verdict in ("above", "below", "not shown")}
    stars = sum(gap.verdict == "above" and gap.outlasts for gap in gaps)
    return (
        f"above in {counted['above']} ({stars}{STAR}), below in {counted['below']}, not shown in "
        f"{counted['not shown']} of {len(gaps)}"
    )


def _said(found: Sequence[Elsewhere]) -> list[str]:
    """How often the global model stands above a local one, in words."""
    parts = []
    for metric, name in NAMES.items():
        gaps = [one.gaps[key] for one in found for key in _local(one, metric)]
        parts.append(f"{name}: {_counted(gaps)} (mean difference {np.mean([gap.mean for gap in gaps]):+.3f})")
    return [f"**The global model against each site's own, on patients of neither: {'; '.join(parts)}.**"]


def written(page: str, found: Sequence[Elsewhere]) -> str:
    """The page with whichever of the two it has marks for.

    Raises:
        UsageError: it has neither.
    """
    made = {f"{MARK} short": short_lines, MARK: lines}
    asked = [mark for mark in made if f"<!-- {mark} -->" in page] or [MARK]
    for mark in asked:
        page = put(page, mark, made[mark](found))
    return page


def main() -> int:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    rewrite(given.page, lambda page: written(page, judged(given.folders)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
