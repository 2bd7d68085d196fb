"""The table of docs/reliability.md, from what the fault matrix recorded.

Record first (the slow tests take about an hour on two cores), then write::

    FED_DIFFMIC_RELIABILITY=/tmp/reliability.jsonl pytest -m slow tests/consortium/test_faults.py
    python benchmarks/reliability.py /tmp/reliability.jsonl

Of several records of one cell at one interval the last counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin (benchmarks/reliability.py) -->", "<!-- table: end -->"


def rows(file: Path) -> list[dict[str, Any]]:
    """The last record of each cell at each interval, in the order of who, when, how."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[tuple(record[name] for name in ("who", "when", "how", "heartbeat_s"))] = record
    return list(found.values())


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table, one line for each record, and a sentence that counts them."""
    lines = [
        "| struck | when | how | heartbeat, s | outcome | site's next reply after, s | round done after, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        again = "" if r["recovery_s"] is None else f"{r['recovery_s']:.1f}"
        cells = (r["who"], r["when"], r["how"], f"{r['heartbeat_s']:g}", r["outcome"], again, f"{r['seconds']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    equal = sum(r["outcome"] == "equal weights" for r in records)
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
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows(Path(sys.argv[1])))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
