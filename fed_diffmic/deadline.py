"""A bound on how long a task may compute, looked at between steps.

A site's policy limits the seconds of a round, so the loops that take long (steps, batches, steps of the sampler, images
that are decoded) ask :func:`check_time` each time. Nothing is interrupted in the middle of a step, and without a bound
nothing changes; a real site's supervisor ends a worker whose step does not end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fed_diffmic.errors import FedDiffmicError

_DEADLINE: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class OutOfTimeError(FedDiffmicError):
    """The task took longer than it may."""

    code = "FD011"
    exit_code = 5


@contextmanager
def time_bound(seconds: float) -> Iterator[None]:
    """Let what runs inside take at most ``seconds`` and no longer than a bound around it."""
    token = _DEADLINE.set(min(_DEADLINE.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def check_time() -> None:
    """Stop here if the time is over.

    Raises:
        OutOfTimeError: it is.
    """
    if time.monotonic() > _DEADLINE.get():
        raise OutOfTimeError("the task took longer than it may")
