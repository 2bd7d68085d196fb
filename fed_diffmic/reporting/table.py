"""The table a run ends with on the terminal: global and each site, beside the baselines, and where the report is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fed_diffmic.reporting.view import DASH, FEDERATED, arms, figure, mean_figure, number, with_interval

_HEADINGS = {"local": "alone", "pooled": "pooled", "guidance": "guidance"}


def _row(table: Table, name: str, n: int | None, entries: list[dict[str, Any]], accuracy: dict[str, Any]) -> None:
    table.add_row(
        Text(name),
        DASH if n is None else str(n),
        number(accuracy.get("value")),
        with_interval(entries[0]),
        *(number(entry.get("value")) for entry in entries[1:]),
    )


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Test figures: a row for the global test set, one for the mean over sites, one for each site."""
    models = arms(summary)
    others = [arm for arm in models if arm != FEDERATED]
    table = Table(title="Test figures (macro AUROC with 95 % interval)", title_justify="left")
    table.add_column("")
    for heading in ("images", "balanced\naccuracy", "macro AUROC"):
        table.add_column(heading, justify="right")
    for arm in others:
        heading = _HEADINGS.get(arm, arm.replace("/", " "))
        table.add_column(f"AUROC,\n{heading}", justify="right")
    ours = models[FEDERATED]
    every = [FEDERATED, *others]
    total = figure(ours, "auroc_macro")
    _row(
        table,
        "all sites",
        total["n"],
        [figure(models[a], "auroc_macro") for a in every],
        figure(ours, "balanced_accuracy"),
    )
    if len(ours.get("sites") or {}) > 1:
        means = [mean_figure(models[arm], "auroc_macro") for arm in every]
        _row(table, "mean over sites", None, means, mean_figure(ours, "balanced_accuracy"))
    table.add_section()
    for site in sorted(ours.get("sites") or {}):
        entries = [figure(models[arm], "auroc_macro", site=site) for arm in every]
        accuracy = figure(ours, "balanced_accuracy", site=site)
        _row(table, site, ours["sites"][site].get("n_test", entries[0]["n"]), entries, accuracy)
    return table


def print_summary(summary: Mapping[str, Any], report_path: Path | str, console: Console | None = None) -> None:
    """Print the table and the path of the report (plain text, so that it can be copied whole).

    Args:
        summary: what ``summary.json`` holds.
        report_path: where the report was written.
        console: default: standard output.
    """
    console = console or Console()
    console.print(summary_table(summary))
    for line in summary.get("privacy") or []:
        console.print(f"Privacy: {line}", markup=False, highlight=False)
    console.print("For research. Not a medical device.", style="dim")
    console.print(f"Report: {report_path}", markup=False, highlight=False, soft_wrap=True)
