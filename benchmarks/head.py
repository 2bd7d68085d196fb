"""Write the tables of an experiment about the diffusion head into a page, between its marks.

    python -m benchmarks.head DIR docs/lab/2026-11-29-head.md

``DIR`` is the folder of ``fed-diffmic experiment head --out``. Everything between ``<!-- head SPLIT -->`` and
``<!-- end of head SPLIT -->`` is replaced, for the splits ``val`` and ``test`` whose marks the page has; for
``verdict`` by the words alone, of the test images once they were read. Nothing of it is typed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import pages
from fed_diffmic.console import run_command
from fed_diffmic.errors import UsageError
from simulations.experiments.head_report import SPLITS, report_lines, verdict_lines
from simulations.experiments.runner import CELLS

VERDICT = "verdict"


def put(page: str, out: Path) -> str:
    """The page with the tables of an experiment's folder.

    Raises:
        UsageError: the page has no such marks, or the folder no such predictions.
    """
    asked = [part for part in (*SPLITS, VERDICT) if f"<!-- head {part} -->" in page]
    if not asked:
        raise UsageError(
            "the page has no line <!-- head val -->, <!-- head test --> or <!-- head verdict -->",
            "Add one, and its end: <!-- end of head val -->.",
        )
    read = "test" if any((out / CELLS).glob("*/test.safetensors")) else "val"
    for split in asked:
        lines = verdict_lines(out, read) if split == VERDICT else report_lines(out, split)
        page = pages.put(page, f"head {split}", lines)
    return page


def main() -> int:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    pages.rewrite(arguments.page, lambda page: put(page, arguments.folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
