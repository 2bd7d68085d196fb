"""Events as one tidy table: a row for each arm, stage, round, site and metric (``metrics.csv``)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fed_diffmic.files import atomic_write
from fed_diffmic.reporting.view import FEDERATED, METRIC_NAMES

GLOBAL = "global"
Trial = tuple[float, str]
"""The factor on every learning rate, and the optimizer (empty: each stage's own)."""
AS_SET: Trial = (1.0, "")
COLUMNS = ("arm", "lr_scale", "stage", "round", "site", "split", "metric", "value", "optimizer")


class Row(NamedTuple):
    """One measured number. ``split``: ``train``, ``val``, ``test``, or empty for what is no figure (seconds, bytes).

    ``lr_scale`` and ``optimizer`` are the trial's; of the optimizer empty: each stage's own.
    """

    arm: str
    lr_scale: float
    stage: str
    round: int | None
    site: str
    split: str
    metric: str
    value: float
    optimizer: str = ""

    @property
    def trial(self) -> Trial:
        """Which of the ways in which the arm was trained."""
        return self.lr_scale, self.optimizer


def _numbers(metrics: Any) -> Iterator[tuple[str, float]]:
    """Name and number of each defined figure, written as a number or as ``{value, ...}``."""
    for name, entry in metrics.items() if isinstance(metrics, Mapping) else ():
        value = entry.get("value") if isinstance(entry, Mapping) else entry
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield str(name), float(value)


def _trial_of(event: Mapping[str, Any]) -> Trial:
    return float(event["lr_scale"]), str(event.get("optimizer", ""))


def _of_event(event: Mapping[str, Any], arm: str, trial: Trial, stage: str) -> Iterator[Row]:
    kind = event["kind"]
    site = str(event.get("site", GLOBAL))
    scale, optimizer = trial
    at = (arm, scale, str(event.get("stage", stage)), event.get("round"), site)
    if kind == "site_evaluated":
        for name, value in _numbers({key: event.get(key) for key in METRIC_NAMES}):
            yield Row(*at, "val", name, value, optimizer)
    elif kind in ("site_done", "round_done"):
        for name, value in _numbers(event.get("figures")):
            yield Row(*at, "val", name, value, optimizer)
        for name, value in _numbers({"loss": event.get("loss")}):
            yield Row(*at, "train", name, value, optimizer)
        costs = {key: event.get(key) for key in ("seconds", "bytes", "bytes_sent")}
        for name, value in _numbers(costs):
            yield Row(*at, "", name, value, optimizer)
    elif kind == "figures":
        split = str(event.get("split", ""))
        for name, value in _numbers(event.get("figures")):
            last = (arm, scale, str(event.get("stage", "")), event.get("round"), site)
            yield Row(*last, split, name, value, optimizer)


def metric_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of a run, in the order of the events.

    An event belongs to the arm it names, else to the last ``arm_started``, and to the trial of the last
    ``trial_started`` of that arm (else the settings as they are). A round that was done again after a crash is there
    once, as it was done last.
    """
    arm, trial, stage = FEDERATED, AS_SET, ""
    rows: dict[tuple[Any, ...], Row] = {}
    for event in events:
        if event["kind"] == "arm_started":
            arm, trial = str(event.get("arm", arm)), AS_SET
        elif event["kind"] == "trial_started":
            trial = _trial_of(event)
        elif event["kind"] == "stage_started":
            stage = str(event.get("stage", stage))
        for row in _of_event(event, str(event.get("arm", arm)), trial, stage):
            rows[tuple(row._replace(value=0.0))] = row
    return list(rows.values())


def kept_rows(events: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of the trials that were kept: what curves show. An arm that is not done shows its trials' last one."""
    rows = metric_rows(events)
    kept = {row.arm: row.trial for row in rows}
    done = (event for event in events if event["kind"] == "arm_done" and event.get("lr_scale") is not None)
    kept |= {str(event["arm"]): _trial_of(event) for event in done}
    return [row for row in rows if row.trial == kept[row.arm]]


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
