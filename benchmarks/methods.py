"""Write the table of an experiment's methods over its seeds into a page, between its two marks.

    python -m benchmarks.methods DIR docs/lab/2026-11-29-shared-noise.md --against none local-8

``DIR`` is the folder of ``fed-diffmic experiment run --out``. Everything between ``<!-- methods -->`` and
``<!-- end of methods -->`` is replaced (with a name: ``<!-- methods NAME -->``); nothing of it is typed. Seeds that
some method lacks are left out for all, and named. Intervals of differences: :mod:`simulations.experiments.compare`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.pages import fill
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from fed_diffmic.files import read_json
from simulations.experiments.answer import NAMES, gap_text, table
from simulations.experiments.compare import MEAN, METRICS, Section, difference
from simulations.experiments.gather import grouped, sections
from simulations.experiments.report import megabytes, number

MARK = "methods"
ALL = "all test images"
PLACES = (ALL, MEAN)
Values = dict[tuple[str, str, str], np.ndarray]


def lines(out: Path, against: Sequence[str]) -> list[str]:
    """The tables of each section: every method, and its difference from each that ``against`` names.

    Raises:
        UsageError: no experiment, no seed that all methods have, or ``against`` names none of its methods.
    """
    groups, folds = grouped(out)
    if folds:
        raise UsageError(f"{out}: an experiment over folds", "Write its answer: python -m benchmarks.answer DIR PAGE.")
    if not groups:
        raise UsageError(f"{out}: none of its cells has metrics yet", "Let the experiment go on.")
    found: list[str] = []
    for section, (rest, methods) in zip(sections(out), groups.items(), strict=True):
        if not section.seeds:
            raise UsageError(f"{out}: no seed has all its methods yet", "Let the experiment go on.")
        for name in against:
            if name not in methods:
                raise UsageError(f"{out}: it has no method {name!r}", f"Name one of {', '.join(methods)}.")
        values = dict(section.values)
        for name, folders in methods.items():
            tests = [read_json(folders[seed][0] / "summary.json")["global"]["test"] for seed in section.seeds]
            for metric in METRICS:
                values[name, ALL, metric] = np.array([_value(test, metric) for test in tests])
        title = [f"### {', '.join(f'{axis} {value}' for axis, value in rest)}", ""] if rest else []
        found += [*title, *_section(section, values, list(methods), against)]
    return found


def _value(test: dict[str, dict[str, float | None]], metric: str) -> float:
    value = test[metric]["value"]
    return math.nan if value is None else value


def _section(section: Section, values: Values, methods: list[str], against: Sequence[str]) -> list[str]:
    wanted = [(metric, place) for metric in reversed(METRICS) for place in PLACES]
    titles = [f"{NAMES[metric]}, {place}" for metric, place in wanted]
    means = [
        [name, *(number(values[name, place, metric]) for metric, place in wanted), megabytes(section.bytes_sent[name])]
        for name in methods
    ]
    missing = [f"Seeds that some method lacks are left out: {', '.join(section.left_out)}.", ""]
    return [
        f"Mean (standard deviation) over the seeds {', '.join(section.seeds)}.",
        "",
        *(missing if section.left_out else []),
        *table(["method", *titles, "MB of tensors, both ways"], means),
        *(line for reference in against for line in _gaps(section, values, methods, reference)),
    ]


def _gaps(section: Section, values: Values, methods: list[str], reference: str) -> list[str]:
    wanted = [(metric, place) for metric in reversed(METRICS) for place in PLACES]
    rows = []
    for name in methods:
        pairs = [(values[name, place, metric], values[reference, place, metric]) for metric, place in wanted]
        if name != reference:
            rows.append([name, *(gap_text(difference(ours, theirs, section.ratio)) for ours, theirs in pairs)])
    return table([f"minus {reference}", *(f"{NAMES[metric]}, {place}" for metric, place in wanted)], rows)


def main() -> int:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--against", nargs="+", required=True, help="methods that all others are compared with")
    parser.add_argument("--name", default="", help="of the marks, where a page has several tables")
    given = parser.parse_args()
    fill(given.page, MARK, lambda: lines(given.folder, given.against), given.name)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
