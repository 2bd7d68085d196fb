"""Write the answer of an experiment into a page, between its two marks.

    python -m benchmarks.answer DIR docs/results.md [--name NAME]

``DIR`` is the folder of ``fed-diffmic experiment run --out``. Everything between ``<!-- answer -->`` and
``<!-- end of answer -->`` is replaced (with a name: ``<!-- answer NAME -->``); nothing of it is typed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pages import fill
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from fed_diffmic.files import read_json
from fed_diffmic.reporting.view import duration
from simulations.experiments.report import answer_lines
from simulations.experiments.runner import CELLS, read_index

MARK = "answer"


def answered(out: Path) -> list[str]:
    """The answer of an experiment, with what it rests on.

    Raises:
        UsageError: no experiment, or nothing to answer with.
    """
    index = read_index(out)
    done = [path for cell in index["cells"] if (path := out / CELLS / cell["name"] / "summary.json").exists()]
    lines = answer_lines(out)
    if not lines:
        raise UsageError(f"{out}: no seed has all its folds and a local baseline yet", "Let the experiment go on.")
    seconds = sum(read_json(path)["seconds"] for path in done)
    made = (
        f"Experiment `{index['experiment']}`: {len(done)} of {len(index['cells'])} runs, {duration(round(seconds))} in "
        "all. For research, not a medical device."
    )
    return [*lines, made]


def main() -> int:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--name", default="", help="of the marks, where a page has several answers")
    given = parser.parse_args()
    fill(given.page, MARK, lambda: answered(given.folder), given.name)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
