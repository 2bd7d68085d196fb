"""Events as one tidy table: a row for each arm, stage, round, site and metric (``metrics.csv``)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fed_diffmic.files import atomic_write
from fed_diffmic.reporting.view import FEDERATED

GLOBAL = "global"
COLUMNS = ("arm", "stage", "round", "site", "split", "metric", "value")


class Row(NamedTuple):
    """One measured number. ``split``: ``train``, ``val``, ``test``, or empty for what is no figure (seconds, bytes)."""

    arm: str
    stage: str
    round: int | None
    site: str
    split: str
    metric: str
    value: float


def _numbers(figures: Any) -> Iterator[tuple[str, float]]:
    """Name and number of each defined figure, written as a number or as ``{value, ...}``."""
    for name, entry in figures.items() if isinstance(figures, Mapping) else ():
        value = entry.get("value") if isinstance(entry, Mapping) else entry
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield str(name), float(value)


def _of_event(event: Mapping[str, Any], arm: str, stage: str) -> Iterator[Row]:
    kind = event["kind"]
    site = str(event.get("site", GLOBAL))
    at = (arm, str(event.get("stage", stage)), event.get("round"), site)
    if kind in ("site_done", "round_done"):
        for name, value in _numbers(event.get("figures")):
            yield Row(*at, "val", name, value)
        for name, value in _numbers({"loss": event.get("loss")}):
            yield Row(*at, "train", name, value)
        costs = {key: event.get(key) for key in ("seconds", "bytes", "bytes_sent")}
        for name, value in _numbers(costs):
            yield Row(*at, "", name, value)
    elif kind == "figures":
        for name, value in _numbers(event.get("figures")):
            yield Row(
                arm, str(event.get("stage", "")), event.get("round"), site, str(event.get("split", "")), name, value
            )


def metric_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of a run, in the order of the events.

    An event belongs to the arm it names, else to the last ``arm_started``. A round that was done again after a crash
    is there once, as it was done last.
    """
    arm, stage = FEDERATED, ""
    rows: dict[tuple[Any, ...], Row] = {}
    for event in events:
        if event["kind"] == "arm_started":
            arm = str(event.get("arm", arm))
        elif event["kind"] == "stage_started":
            stage = str(event.get("stage", stage))
        for row in _of_event(event, str(event.get("arm", arm)), stage):
            rows[row[:-1]] = row
    return list(rows.values())


def write_metrics_csv(path: Path, events: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``metrics.csv``, atomically; numbers with all their digits.

    Raises:
        MachineError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        [repr(v) if isinstance(v, float) else "" if v is None else v for v in row] for row in metric_rows(events)
    )
    return atomic_write(path, text.getvalue().encode())
