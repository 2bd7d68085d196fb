"""The table a run ends with on the terminal: global and each site, beside the baselines, and where the report is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fed_diffmic.reporting.story import by_chance, single_class, tell
from fed_diffmic.reporting.view import DASH, FEDERATED, arms, mean_measured, measured, number, with_interval

ALL, MEAN = "all sites", "mean over sites"
_FRAME = 3  # columns that a cell's border and padding take
_HEADINGS = {"local": "alone", "pooled": "pooled", "guidance": "guidance"}


def summary_tables(summary: Mapping[str, Any], width: int) -> list[Table]:
    """Test metrics: a row for the global test set, one for the mean over sites, one for each site.

    Args:
        summary: what ``summary.json`` holds.
        width: columns of the terminal. Baselines that do not fit beside the federation stand in further tables below
            it, so that no figure is cut.
    """
    models = arms(summary)
    others = [arm for arm in models if arm != FEDERATED]
    names = _row_names(models[FEDERATED])
    first = max(len(name) for name in names)
    base = first + len("images") + len("balanced") + len("0.000 (0.000 to 0.000)") + 4 * _FRAME + 1
    tables = []
    beside = _fitting(others, width - base)
    tables.append(_table(models, names, beside, with_federation=True))
    rest = others[len(beside) :]
    while rest:
        chosen = _fitting(rest, width - first - _FRAME - 1) or rest[:1]
        tables.append(_table(models, names, chosen, with_federation=False))
        rest = rest[len(chosen) :]
    return tables


def _row_names(ours: Mapping[str, Any]) -> list[str]:
    sites = sorted(ours.get("sites") or {})
    return [ALL, *([MEAN] if len(sites) > 1 else []), *sites]


def _heading(arm: str) -> str:
    return f"AUROC,\n{_HEADINGS.get(arm, arm.replace('/', ' '))}"


def _fitting(names: Sequence[str], width: int) -> list[str]:
    """The first of ``names`` whose columns fit into ``width``."""
    found: list[str] = []
    for name in names:
        width -= max(map(len, _heading(name).split("\n"))) + _FRAME
        if width < 0:
            break
        found.append(name)
    return found


def _table(models: Mapping[str, Any], names: Sequence[str], others: Sequence[str], *, with_federation: bool) -> Table:
    ours = models[FEDERATED]
    title = "Test metrics (macro AUROC with 95 % interval)" if with_federation else "Test metrics of the baselines"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=False, overflow="fold")
    if with_federation:
        for heading in ("images", "balanced\naccuracy", "macro AUROC"):
            table.add_column(heading, justify="right", no_wrap=True)
    for arm in others:
        table.add_column(_heading(arm), justify="right", no_wrap=True)
    for name in names:
        own, *rest = [_entry(models[arm], name, "auroc_macro") for arm in (FEDERATED, *others)]
        cells = [number(entry.get("value")) for entry in rest]
        if with_federation:
            accuracy = _entry(ours, name, "balanced_accuracy")
            cells = [_images(ours, name, own), number(accuracy.get("value")), with_interval(own), *cells]
        table.add_row(Text(name), *cells, end_section=name in (ALL, MEAN) and names[-1] != name)
    return table


def _entry(model: Mapping[str, Any], name: str, metric: str) -> dict[str, Any]:
    if name == ALL:
        return measured(model, metric)
    return mean_measured(model, metric) if name == MEAN else measured(model, metric, site=name)


def _images(ours: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> str:
    count = None if name == MEAN else entry["n"]
    if name not in (ALL, MEAN):
        count = ours["sites"][name].get("n_test", count)
    return DASH if count is None else str(count)


def print_summary(summary: Mapping[str, Any], report_path: Path | str, console: Console | None = None) -> None:
    """Print the table and the path of the report (plain text, so that it can be copied whole).

    Args:
        summary: what ``summary.json`` holds.
        report_path: where the report was written.
        console: default: standard output.
    """
    console = console or Console()
    for table in summary_tables(summary, console.width):
        console.print(table)
    for said in (single_class(summary) and tell(summary).headline, by_chance(summary)):
        if said:
            console.print(said, style="bold", markup=False, highlight=False)
            break
    for line in summary.get("privacy") or []:
        console.print(f"Privacy: {line}", markup=False, highlight=False)
    console.print("For research. Not a medical device.", style="dim")
    console.print(f"Report: {report_path}", markup=False, highlight=False, soft_wrap=True)
