"""How long to wait before asking again: briefly after something came, longer the longer nothing did.

A question costs whoever is asked some milliseconds, a local update may take hours, and between the requests of one
round there are none to a second. A share of the time for which nothing came bounds both what is lost by waiting and
what is asked in vain: with 0.05, a twentieth of that time, and some 20 questions for each factor of e in it. Where
the question itself waits for an answer, nothing is gained by another pause after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05


class Pauses:
    """Pauses between questions.

    Args:
        shortest: seconds; the first ones are so long.
        longest: seconds.
        clock: seconds that never go back.
    """

    def __init__(self, shortest: float, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._shortest, self._longest, self._clock = min(shortest, longest), longest, clock
        self._came = clock()
        self._waited = 0.0

    def came(self) -> None:
        """Something came, or was handed in: more may follow at once."""
        self._came = self._clock()

    def waited(self, seconds: float) -> None:
        """The question that was just answered in vain waited so long itself."""
        self._waited = seconds

    def next(self) -> float:
        """Seconds to wait now."""
        pause = min(self._longest, max(self._shortest, SHARE * (self._clock() - self._came)))
        waited, self._waited = self._waited, 0.0
        return max(0.0, pause - waited)
