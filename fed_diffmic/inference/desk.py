"""One computation at a time, a bounded queue before it, and a bound on how long anybody waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fed_diffmic.deadline import OutOfTimeError, time_bound

T = TypeVar("T")


class BusyError(Exception):
    """As many are waiting as may."""


class Desk:
    """A thread that computes, and those who wait for it.

    A network uses every core that it is given by itself, so two at once would only take each other's time and twice the
    memory.

    Args:
        queue: how many may wait besides the one that is served.
        wait_s: the longest from asking to the answer, seconds.
    """

    def __init__(self, queue: int, wait_s: float) -> None:
        self._queue = queue
        self._wait_s = wait_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="desk")
        self.waiting = 0

    async def ask(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which runs in the desk's thread and looks at its time between its steps
        (:func:`fed_diffmic.deadline.check_time`).

        Raises:
            BusyError: the queue is full; nothing was begun.
            OutOfTimeError: the time is over, before or within it.
        """
        if self.waiting > self._queue:
            raise BusyError
        self.waiting += 1
        until = time.monotonic() + self._wait_s

        def bounded() -> T:
            with time_bound(until - time.monotonic()):
                return work()

        future = self._thread.submit(bounded)
        # Who waited too long is not computed for: what was not begun is cancelled with the wait.
        # The place is free when the thread is done with it, not when somebody stopped waiting for it.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._wait_s)
        except TimeoutError as error:
            raise OutOfTimeError("the task took longer than it may") from error

    def _leave(self) -> None:
        self.waiting -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
