"""How far a run is: bars on a terminal, one plain line a round elsewhere (logs, pipes, continuous integration)."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fed_diffmic.reporting.events import Event, trouble
from fed_diffmic.reporting.view import METRIC_NAMES, duration, number

_SHOWN = ("auroc_macro", "balanced_accuracy", "accuracy")


class _State:
    """Where the run is, learnt from its events."""

    def __init__(self) -> None:
        self.arm, self.stage = "federated", ""
        self.round = self.rounds = self.expected = 0
        self.done: set[str] = set()
        self.seconds: list[float] = []

    def follow(self, event: Event) -> None:
        """Take one event into account."""
        kind = event["kind"]
        self.arm = str(event.get("arm", self.arm))
        if kind == "stage_started":
            self.stage, self.seconds = str(event.get("stage", "")), []
            self.round, self.rounds = int(event.get("round") or 0), int(event.get("rounds") or 0)
        elif kind == "round_started":
            sites = event.get("sites") or 0
            self.expected = len(sites) if isinstance(sites, list) else int(sites)
            self.round, self.rounds = int(event.get("round") or 0), int(event.get("rounds") or self.rounds)
            self.done = set()
        elif kind == "site_done":
            self.done.add(str(event.get("site")))
        elif kind == "round_done":
            self.round, self.rounds = int(event.get("round") or self.round), int(event.get("rounds") or self.rounds)
            if event.get("seconds") is not None:
                self.seconds.append(float(event["seconds"]))

    @property
    def left(self) -> float | None:
        """Seconds that the rest of this stage will take if its rounds go on as they did."""
        if not self.seconds or self.rounds <= self.round:
            return None
        return sum(self.seconds) / len(self.seconds) * (self.rounds - self.round)

    def round_line(self, event: Event) -> str:
        """A finished round in one line."""
        parts = [f"{len(self.done)} of {max(self.expected, len(self.done))} sites"] if self.done else []
        metrics: dict[str, Any] = event.get("figures") or {}
        shown = next((name for name in _SHOWN if metrics.get(name) is not None), None)
        if shown is not None:
            parts.append(f"validation {METRIC_NAMES[shown]} {number(metrics[shown])}")
        if event.get("loss") is not None:
            parts.append(f"loss {number(event['loss'])}")
        parts.append(duration(event.get("seconds")))
        if self.left is not None:
            parts.append(f"about {duration(round(self.left))} left in this stage")
        return f"[{self.arm}] {self.stage} round {self.round}/{self.rounds}: {', '.join(parts)}"

    def line(self, event: Event) -> str | None:
        """What is worth a line of its own; ``None`` for the rest."""
        match event["kind"]:
            case "round_done":
                return self.round_line(event)
            case "resumed":
                return "resumed from the last checkpoint"
            case "stage_stopped":
                rounds = f"round {event['round']} of {event['rounds']}"
                return f"[{self.arm}] {self.stage}: ends with {rounds}, {event.get('reason', '')}"
            case "stage_done" if event.get("best_round") is not None:
                why = "the best on validation" if event.get("chosen", True) else "the last: no site says which is best"
                return f"[{self.arm}] {self.stage}: kept round {event['best_round']}, {why}{_unjudged(event)}"
            case "site_failed" | "site_refused" | "site_waits":
                return f"warning: {trouble(event)}"
            case "figures_missing" if event.get("purpose") == "calibrate":
                return f"warning: [{self.arm}] {event['stage']}: not calibrated: {_why(event)}"
            case "figures_missing" if event.get("purpose") == "conform":
                return f"warning: [{self.arm}] {event['stage']}: no prediction sets: {_why(event)}"
            case "figures_missing" if event.get("purpose") == "test":
                return f"warning: [{self.arm}] {event['stage']}: no figures of test images: {_why(event)}"
            case "figures_missing":
                return f"warning: [{self.arm}] {event['stage']} round {event['round']}: not judged: {_why(event)}"
            case "personal_made" if event.get("share") is not None:
                return f"[{event['how']}] {event['site']}: share of its own model {number(event['share'])}"
            case "personal_made":
                passes = int(event["passes"])
                found = f"{passes} {'pass' if passes == 1 else 'passes'}" if passes else "none better than it was"
                return f"[{event['how']}] {event['site']}: {found}"
            case "warning":
                return f"warning: {event.get('message', event.get('code', ''))}"
            case "run_done":
                return f"run done in {duration(event.get('seconds'))}"
            case _:
                return None


def _why(event: Event) -> str:
    """Why there is no sum, and what can be done."""
    return ". ".join(part for part in (event["reason"], event.get("todo")) if part)


def _unjudged(event: Event) -> str:
    """What became of rounds behind the last judged one."""
    if not event.get("unjudged"):
        return ""
    some = "round was" if event["unjudged"] == 1 else f"{event['unjudged']} rounds were"
    return f"; the last {some} not judged, and the weights that came of it are {event['last']} in the run's folder"


class PlainProgress:
    """One line a round, flushed.

    Args:
        stream: where to; default: standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._state = _State()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._state.follow(event)
        line = self._state.line(event)
        if line is not None:
            print(line, file=self._stream, flush=True)


class RichProgress:
    """Bars for the stage's rounds and the round's sites, finished rounds above them as lines that stay.

    Args:
        console: where to; default: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._state = _State()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),  # it holds names of sites
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[left]}"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._rounds: TaskID | None = None
        self._sites: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._state.follow(event)
        kind = event["kind"]
        if kind == "stage_started":
            self._new_stage()
        if self._rounds is not None and self._sites is not None:
            self._update(kind, self._rounds, self._sites)
        line = self._state.line(event)
        if line is not None:
            self._bars.console.print(
                line, markup=False, highlight=False, style="yellow" if line.startswith("warning") else ""
            )
        if kind == "run_done":
            self.close()

    def _new_stage(self) -> None:
        for task in (self._rounds, self._sites):
            if task is not None:
                self._bars.remove_task(task)
        state = self._state
        title = f"{state.arm} · {state.stage}"
        self._rounds = self._bars.add_task(title, total=state.rounds or None, completed=state.round, left="")
        self._sites = self._bars.add_task("sites", total=None, left="")
        self._bars.start()

    def _update(self, kind: str, rounds: TaskID, sites: TaskID) -> None:
        state = self._state
        if kind == "round_started":
            self._bars.reset(sites, total=state.expected or None, description=f"sites of round {state.round}")
            self._bars.update(rounds, completed=max(0, state.round - 1), total=state.rounds)
        elif kind == "site_done":
            self._bars.update(sites, completed=len(state.done))
        elif kind == "round_done":
            left = "" if state.left is None else f"about {duration(round(state.left))} left"
            self._bars.update(rounds, completed=state.round, total=state.rounds, left=left)

    def close(self) -> None:
        """Take the bars away and give the cursor back (also after Ctrl-C)."""
        self._bars.stop()


def make_progress(stream: TextIO | None = None) -> PlainProgress | RichProgress:
    """The display that fits ``stream`` (default: standard error): bars if a person looks at it, else lines."""
    stream = stream if stream is not None else sys.stderr
    if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return RichProgress(Console(file=stream))
    return PlainProgress(stream)
