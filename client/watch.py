"""What a worker is doing and until when it may: its word to the supervisor, and what is left of a task that was ended.

A worker looks at its time between steps; a step that hangs or takes minutes is ended from outside
(:mod:`client.watchdog`). The request is then still in the spool and would be computed again by the next worker, for
ever. So the supervisor first leaves a mark under the request's name, and the next worker answers the request with the
mark's code.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.files import read_json, write_json

DOING, ENDED = "task.json", "ended"
OPENING, COMPUTING = "opening", "computing"
REPEATED_S = 900.0
"""A question that is asked in the same words in every run (who are you) is refused for this long, not for ever."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Doing:
    """A task in hand.

    Attributes:
        pid: of the worker.
        task: ``query``, ``train``, ``evaluate``, ``conform``, ``assess`` or ``labels``.
        phase: :data:`OPENING` (the images are read and decoded) or :data:`COMPUTING`.
        request: the request's name.
        until: time on the machine's monotonic clock at which it must be over, seconds; none: no bound.
        allowed: seconds that it was given; none: no bound.
        code: what the request is answered with if it takes longer.
    """

    pid: int
    task: str
    phase: str
    request: str
    until: float | None
    allowed: float | None
    code: int


@dataclass(frozen=True)
class Mark:
    """What a request that was ended is answered with.

    Attributes:
        task, phase: as in :class:`Doing`.
        code: of the answer.
        allowed: what it was given (seconds or MiB): a person who allows more lets the request be tried again.
        at: when it was ended, seconds since the epoch.
    """

    task: str
    phase: str
    code: int
    allowed: float
    at: float


class Watch:
    """The worker's side.

    Args:
        run: folder of the state files of the running processes.
        folder: the site's own.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self._path = run / DOING
        self._folder = folder

    @contextmanager
    def doing(self, task: str, phase: str, request: str, seconds: float, code: int) -> Iterator[None]:
        """Say that a task is in hand that may take ``seconds`` from now (infinite: no bound).

        Raises:
            MachineError: it cannot be written; what nobody could end is not begun.
        """
        bound = seconds if math.isfinite(seconds) else None
        until = None if bound is None else time.monotonic() + bound
        said = Doing(os.getpid(), task, phase, request, until, bound, code)
        part = self._path.with_suffix(".part")
        try:
            part.write_text(json.dumps(asdict(said)), encoding="utf-8")
            part.replace(self._path)
        except OSError as error:
            raise MachineError(
                f"what the worker is doing cannot be written: {error.strerror}", "Free space."
            ) from error
        try:
            yield
        finally:
            self._path.unlink(missing_ok=True)

    def mark(self, request: str) -> Mark | None:
        """The mark of a request that was ended, if it holds still."""
        found = read_mark(self._folder, request)
        if found is not None and found.task in ("query", "labels") and time.time() - found.at > REPEATED_S:
            return None
        return found


def read_doing(run: Path) -> Doing | None:
    """What the worker says, or none."""
    try:
        return Doing(**json.loads((run / DOING).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def leave_mark(folder: Path, request: str, mark: Mark) -> None:
    """Leave a mark, flushed to the disk, before the worker is ended.

    Raises:
        MachineError: it cannot be written.
    """
    (folder / ENDED).mkdir(mode=0o700, exist_ok=True)
    write_json(folder / ENDED / f"{request}.json", asdict(mark), mode=0o600)


def read_mark(folder: Path, request: str) -> Mark | None:
    """The mark of a request, or none."""
    path = folder / ENDED / f"{request}.json"
    try:
        return Mark(**read_json(path)) if path.exists() else None
    except (ModelFileError, TypeError):
        logger.warning("the mark of a task that was ended cannot be read; the task is tried again")
        return None
