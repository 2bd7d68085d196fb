"""The table of docs/reliability.md, from what the fault matrix recorded.

Record first (the slow tests take about an hour on two cores), then write::

    FED_DIFFMIC_RELIABILITY=/tmp/reliability.jsonl pytest -m slow tests/consortium/test_faults.py
    python -m benchmarks.reliability /tmp/reliability.jsonl

Of several records of one cell at one interval the last counts. Cells that the file does not name stay in the table as
they are, so that one cell can be measured anew (``-k CELL``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.consortium.faults import MATRIX

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
HEAD = ("struck", "when", "how", "heartbeat, s", "outcome", "site's next reply after, s", "round done after, s")
BEGIN, END = "<!-- table: begin (benchmarks/reliability.py) -->", "<!-- table: end -->"


def rows(file: Path, lines: Iterable[str] = ()) -> list[list[str]]:
    """The table's cells: the last record of each fault at each interval, Flower's own interval first.

    Args:
        file: of records.
        lines: of the table as it is.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and cells[0] != HEAD[0]:
            found[tuple(cells[:4])] = cells
    for line in file.read_text(encoding="utf-8").splitlines():
        r = json.loads(line)
        again = "" if r["recovery_s"] is None else f"{r['recovery_s']:.1f}"
        key = (r["who"], r["when"], r["how"], f"{r['heartbeat_s']:g}")
        found[key] = [*key, r["outcome"], again, f"{r['seconds']:.0f}"]
    order = {cell: n for n, cell in enumerate((cell.who, cell.when, cell.how) for cell in MATRIX)}
    return [found[key] for key in sorted(found, key=lambda k: (-float(k[3]), order[k[0], k[1], k[2]]))]


def table(records: Sequence[Sequence[str]]) -> str:
    """A Markdown table, one line for each record, and a sentence that counts them."""
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, *records)]
    lines.insert(1, "|" + "---|" * len(HEAD))
    equal = sum(row[4] == "equal weights" for row in records)
    lines += ["", f"{len(records)} records: {equal} ended by themselves with weights equal bit for bit to the "
              f"undisturbed run, {len(records) - equal} in a clear failure, and with the same weights once the cause "
              "was mended and the run was continued."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Put the table into the page."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    new = table(rows(Path(sys.argv[1]), old.splitlines()))
    PAGE.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
