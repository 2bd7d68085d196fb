"""What ``evaluate`` and ``predict`` print: tables, folded rather than cut; whole lines where they go to a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fed_diffmic.inference.predictions import Predictions, Progress
    from fed_diffmic.inference.sure import Sure

_NAME_WIDTH = 20  # characters that an image's name has at least, before it is folded
_UNBOUNDED = 100_000  # characters of a line that goes to a file or a pipe


def console(taken: bool) -> Console:
    """Where tables are printed: beside a result that is written to standard output.

    A file or a pipe has no width: nothing is folded there, unless ``COLUMNS`` says otherwise.
    """
    from rich.console import Console

    found = Console(stderr=taken)
    if not found.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        found = Console(stderr=taken, width=_UNBOUNDED)
    return found


@contextmanager
def progress_bar(total: int, least: int) -> Iterator[Progress | None]:
    """A bar on standard error while more than ``least`` images are predicted, where it is a terminal."""
    if total <= least or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def shown(name: str) -> str:
    """A name as one line that no terminal takes for a command: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _table(columns: list[str], title: str | None = None) -> Table:
    """A table whose words are printed as they are, square brackets too, and folded rather than cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else Text(title))
    for name in columns:
        table.add_column(Text(shown(name)), overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))


def print_metrics(console: Console, result: dict[str, Any]) -> None:
    """The metrics over all classes, what was found in the data, and which classes they leave out."""
    from fed_diffmic.training.metrics import METRICS

    metrics = result["figures"]
    table = _table(["figure", "value", "95 % interval"], f"{result['n']} images")
    for metric in METRICS:
        cell = metrics[metric]
        if cell["value"] is not None:
            interval = "" if cell["low"] is None else f"{cell['low']:.3f} to {cell['high']:.3f}"
            _row(table, metric, f"{cell['value']:.3f}", interval)
    console.print(table)
    for note in result["notes"]:
        console.print(note, markup=False, highlight=False)
    absent = [shown(name) for name, cell in metrics["per_class"].items() if not cell["positives"]]
    if absent:
        console.print(f"Absent from this table, and from every macro figure: {', '.join(absent)}", markup=False)
    console.print(result["notice"], markup=False)


def print_predictions(console: Console, found: Predictions) -> None:
    """One column a class where they fit beside the names, else one line a class; then what holds for all images."""
    from rich.cells import cell_len

    from fed_diffmic.inference.predictor import NOTICE
    from fed_diffmic.reporting.view import plain_names

    classes = [shown(name) for name in found.classes]
    decided = [", ".join(map(shown, names)) or "none" for names in found.decided_names()]
    more = _more(found.sure, len(found))
    columns = ["decided", *more]
    said = [decided, *more.values()]
    widths = [max(map(cell_len, [name, *cells])) for name, cells in zip(columns, said, strict=True)]
    numbers = [max(5, cell_len(name)) for name in classes]
    rows = zip(found.names, zip(*said, strict=True), found.probabilities, strict=True)
    if _NAME_WIDTH + sum(widths) + sum(numbers) + 3 * (1 + len(widths) + len(numbers)) + 1 <= console.width:
        table = _table(["image", *columns, *classes])
        for column in table.columns[1:]:
            column.no_wrap = True
        for name, cells, row in rows:
            _row(table, shown(name), *cells, *(f"{p:.3f}" for p in row))
    else:
        table = _table(["image", *columns, "probability"])
        table.show_lines = True
        for name, cells, row in rows:
            _row(table, shown(name), *cells, "\n".join(f"{p:.3f} {c}" for p, c in zip(row, classes, strict=True)))
    if len(found):
        console.print(table)
    known = plain_names(found.classes)
    if known:
        console.print("; ".join(f"{shown(name)}: {plain}" for name, plain in known.items()), markup=False)
    for sentence in () if found.sure is None else found.sure.sentences():
        console.print(sentence, markup=False, highlight=False)
    console.print(NOTICE, markup=False)


def _more(sure: Sure | None, count: int) -> dict[str, list[str]]:
    """Columns of how sure each prediction is, those that are known."""
    columns: dict[str, list[str]] = {}
    if sure is None:
        return columns
    if sure.rule is not None:
        columns[f"{sure.rule.level:.0%} set"] = [_set(sure, image) for image in range(count)]
    for name, values in sure.doubts.items():
        columns[name] = [f"{value:.2f}" for value in values]
    for name, flags in (("refer", sure.referred), ("unlike", sure.unfamiliar)):
        if flags is not None:
            columns[name] = ["yes" if flag else "" for flag in flags]
    return columns


def _set(sure: Sure, image: int) -> str:
    found = sure.set_of(image)
    if isinstance(found, dict):
        words = {"present": "", "either": "?", "neither": "!"}
        return ", ".join(shown(name) + words[said] for name, said in found.items() if said in words) or "none present"
    if found is not None and len(found) == len(sure.classes):
        return "any"
    return ", ".join(map(shown, found or [])) or "empty"
