"""``fed-diffmic report``: a finished run's report again, or several runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add

_ABOUT = """Write a finished run's report.html again, or hold runs against each other in one page.

  fed-diffmic report RUN [--interactive] [--out FILE]
  fed-diffmic report RUN --compare RUN RUN [--out FILE]

Nothing is trained or predicted: the page is made from the files in the runs' folders. With --interactive its plots
say their numbers where they are pointed at, and the page holds a script (plotly.js, 5 MB); without, it holds none,
which mail filters of hospitals prefer.
"""


def register(add: Add) -> None:
    """Add ``report``."""
    report = add("report", _report, "a finished run's report again, or several runs compared")
    report.description = _ABOUT
    report.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    report.add_argument("--compare", nargs="+", type=Path, default=[], metavar="RUN", help="runs to hold against it")
    report.add_argument("--interactive", action="store_true", help="plots that can be pointed at (extra interactive)")
    report.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (RUN/report.html, RUN/report-interactive.html or, with --compare, RUN/compare.html)",
    )


def _report(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.commands.outputs import check_output, check_outside
    from fed_diffmic.config.folders import RUN_MARKS
    from fed_diffmic.reporting.compare import read_runs, read_summary, write_comparison

    folder: Path = arguments.folder
    summary = read_summary(folder)
    if arguments.compare and arguments.interactive:
        raise UsageError("--interactive does not go with --compare", "Leave one of them out.")
    usual = "report-interactive.html" if arguments.interactive else "report.html"
    out: Path = arguments.out or folder / ("compare.html" if arguments.compare else usual)
    check_output("--out", out)
    for run in (folder, *arguments.compare):
        check_outside("--out", out, run, ("final", *RUN_MARKS))
    if arguments.compare:
        print(write_comparison(out, read_runs([folder, *arguments.compare])))
        return 0
    from fed_diffmic.reporting.deployment import KIND, write_deployment_report
    from fed_diffmic.reporting.events import read_events
    from fed_diffmic.reporting.report import write_report

    configuration = folder / "config.yaml"
    text = configuration.read_text(encoding="utf-8") if configuration.is_file() else ""
    write = write_deployment_report if summary.get("kind") == KIND else write_report
    events = read_events(folder / "events.jsonl")
    print(write(folder, summary, events=events, config_yaml=text, path=out, interactive=arguments.interactive))
    return 0
