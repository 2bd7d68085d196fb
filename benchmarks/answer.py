"""Write the answer of an experiment into a page, between its two marks.

    python -m benchmarks.answer DIR docs/results.md

``DIR`` is the folder of ``fed-diffmic experiment run --out``. Everything between ``<!-- answer -->`` and
``<!-- end of answer -->`` is replaced; nothing of it is typed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fed_diffmic.errors import UsageError
from fed_diffmic.files import atomic_write, read_json
from fed_diffmic.reporting.view import duration
from simulations.experiments.report import answer_lines
from simulations.experiments.runner import CELLS, read_index

BEGIN, END = "<!-- answer -->", "<!-- end of answer -->"


def answered(out: Path) -> str:
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
    return "\n".join([*lines, made])


def put(page: str, answer: str) -> str:
    """The page with the answer between its marks.

    Raises:
        UsageError: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the page has no lines {BEGIN} and {END}", "Add both where the answer shall stand.")
    return f"{before}{BEGIN}\n{answer.strip()}\n{END}{after}"


def main() -> None:
    """Read the arguments, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    atomic_write(arguments.page, put(arguments.page.read_text(encoding="utf-8"), answered(arguments.folder)).encode())


if __name__ == "__main__":
    main()
