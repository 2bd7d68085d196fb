"""The facts of a run, one JSON line each, appended as they happen.

``events.jsonl`` is what the report, ``metrics.csv`` and the progress display are made of. A line holds ``time`` (UTC,
ISO 8601), ``elapsed`` (seconds since this process opened the log, from a clock that never jumps), ``kind`` and the
facts. Kinds and their facts (others may be added; readers ignore what they do not know):

===============  ======================================================================================
run_started      run, sites, arms (names in order)
resumed          run
arm_started      arm (``federated``, ``local``, ``pooled``, ...); what follows belongs to it until arm_done
trial_started    arm, lr_scale: one factor of the learning-rate grid, optimizer (empty: each stage's own); until the
                 next trial_started or arm_started
stage_started    stage, rounds
round_started    stage, round (from 1), rounds, sites
site_done        stage, round, site, bytes, and its training's numbers (seconds, loss)
site_evaluated   stage, round, site, bytes, and its validation metrics (name to number)
site_failed      stage, round, site, code, reason: no reply that could be used
site_refused     stage, round, site, code, reason: a reply that the screening refused
site_waits       stage, round, site, code, reason, again_s: it asks for patience, and is asked again then
figures_missing  stage, round, purpose, reason, todo: no masked sum of what sites say (evaluate: of a round)
round_done       stage, round, rounds, figures (validation, name to number), loss, bytes_sent, seconds
stage_stopped    stage, round, rounds, reason: it ends before its last round (early stopping)
stage_done       stage, best_round, chosen (false: the last one, because no site says how good a round is); where the
                 last rounds were not judged though earlier ones were: unjudged (how many), last (file of their weights)
arm_done         arm, lr_scale, optimizer (of the trial that was kept)
personal_made    how (finetune, head or mixture), site, passes (over its training images) or share (of its own model)
figures          split, site (``global`` for all), figures (name to number or to ``{value, ...}``)
run_done         seconds, bytes_sent
warning          code, message (never the name of an image or a patient)
===============  ======================================================================================
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.files import append_line

Event = dict[str, Any]
Observer = Callable[[Event], None]
TORN = "torn_line"
OF_A_SITE = frozenset({"site_found", "site_done", "site_evaluated"})
"""What every site does in every round as it should: a log of ``later`` writes these with the line that follows."""
LONGEST_S = 5.0
_RESERVED = ("time", "elapsed")


def plain(value: Any) -> Any:
    """``value`` as strict JSON can hold it: numpy scalars and arrays unwrapped, tuples as lists, no ``nan``.

    A number that is not finite becomes ``None``: a diverged loss must not make the whole log unreadable.

    Raises:
        TypeError: something that is not data.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written as an event's fact")


def trouble(event: Event) -> str:
    """A ``warning``, ``site_failed``, ``site_refused`` or ``site_waits`` event in one sentence."""
    if event["kind"] == "warning":
        return str(event.get("message", event.get("code", "")))
    done = {"site_refused": "was refused", "site_waits": "waits"}.get(event["kind"], "did not reply")
    where = f", stage {event['stage']}" if event.get("stage") else ""
    where += f", round {event['round']}" if event.get("round") else ""
    return f"site {event.get('site') or '(unknown)'} {done}{where}: {event.get('reason', event.get('code', ''))}"


class EventLog:
    """Appends facts to a file and passes each on to the observers (progress, tracking).

    Safe for several threads. A log that a crash left with a torn last line is continued on a new line, and says so
    with a ``warning``. An observer that fails is dropped, and that is a ``warning`` too: a display must not end a
    training run. Use as a context manager, so that observers with a ``close`` are closed on Ctrl-C as well.

    Args:
        path: the file, created if missing; ``None``: nothing is written, observers only.
        observers: called with each event, in order.
        later: lines of :data:`OF_A_SITE` wait for the next line of another kind, or :data:`LONGEST_S` seconds, and are
            written and flushed with it: a thousand virtual sites then wait for the disk once a round. A crash loses
            what waits, which is of a round that a resumed run repeats.

    Raises:
        MachineError: the file cannot be written.
    """

    def __init__(self, path: Path | None, observers: Sequence[Observer] = (), *, later: bool = False) -> None:
        self.path = path
        self._observers = list(observers)
        self._lock = threading.RLock()
        self._start = self._written = time.monotonic()
        self._later = later
        self._waiting: list[str] = []
        if path is not None and path.exists() and path.stat().st_size:
            with path.open("rb") as stream:
                stream.seek(-1, 2)
                torn = stream.read(1) != b"\n"
            if torn:
                self._append("")
                self.emit("warning", code=TORN, message="the line before was cut short by a crash")

    def _append(self, line: str, kind: str = "") -> None:
        if self.path is None:
            return
        self._waiting.append(line)
        now = time.monotonic()
        if self._later and kind in OF_A_SITE and now - self._written < LONGEST_S:
            return
        self._written = now
        self._flush()

    def _flush(self) -> None:
        if self.path is None or not self._waiting:
            return
        lines, self._waiting = self._waiting, []
        try:
            append_line(self.path, "\n".join(lines))
        except OSError as error:
            raise MachineError(
                f"cannot append to {self.path.name} in {self.path.parent}: {error.strerror}", "Free space, then resume."
            ) from error

    def emit(self, kind: str, **facts: Any) -> Event:
        """Write one fact.

        Args:
            kind: one of the table above, or a new one.
            facts: what JSON can hold, numpy included.

        Returns:
            The event as written.

        Raises:
            ValueError: a fact called ``time`` or ``elapsed``.
            TypeError: a fact that is not data.
            MachineError: no space, no permission.
        """
        for name in _RESERVED:
            if name in facts:
                raise ValueError(f"a fact may not be called {name!r}")
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            event = {"time": now, "elapsed": round(time.monotonic() - self._start, 3), "kind": kind, **plain(facts)}
            self._append(json.dumps(event, allow_nan=False), kind)
            for observer in list(self._observers):
                try:
                    observer(event)
                except Exception as error:  # whatever a display can raise, the run goes on without it
                    self._observers.remove(observer)
                    name = type(observer).__name__
                    self.emit("warning", code="observer", message=f"{name} stopped: {type(error).__name__}")
            return event

    def close(self) -> None:
        """Write what waits and close the observers that can be closed. Twice is once.

        Raises:
            MachineError: no space, no permission.
        """
        with self._lock:
            observers, self._observers = self._observers, []
            try:
                self._flush()
            finally:
                for observer in observers:
                    close = getattr(observer, "close", None)
                    if close is not None:
                        close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path) -> list[Event]:
    """All events of a log, in order; a line torn by a crash is left out.

    Raises:
        ModelFileError: the file is missing, or a line that no crash explains cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}", "Give the folder of a run.") from error
    parsed = [(number, _parse(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    events: list[Event] = []
    for index, (number, event) in enumerate(parsed):
        if event is not None:
            events.append(event)
            continue
        following = parsed[index + 1][1] if index + 1 < len(parsed) else None
        last = index + 1 == len(parsed)
        if not last and (following is None or following.get("code") != TORN):
            raise ModelFileError(
                f"{path}, line {number}: not an event", "Restore the file; it is only ever appended to."
            )
    return events


def earlier_seconds(events: Sequence[Event]) -> float:
    """Seconds that other processes worked on a run before the one whose events come last.

    Each counts from its start to the last thing it wrote: what a process that was killed did after that is not known.
    """
    elapsed = [float(event["elapsed"]) for event in events if "elapsed" in event]
    return sum(before for before, after in pairwise(elapsed) if after < before)


def _parse(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("kind"), str) else None
