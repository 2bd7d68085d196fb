"""What a run of rounds is held to: which stages, which sites, how many must answer, how long anything may take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

JUDGED_SHARE = 0.2


@dataclass(frozen=True)
class RunTerms:
    """The terms of one run; nothing of them reaches a site but what its study says.

    Attributes:
        stages: that are trained, in order.
        sites: names of the sites expected; none: whoever is there.
        quorum: share of the sites whose good replies a round needs, in (0, 1].
        deadline_s: seconds that a round may take, its evaluation included, which has a fifth of that in any case.
        join_s: the longest wait for sites to appear at the start, in seconds.
        poll_s: pause between looking for replies, in seconds.
        test_s: the longest wait, in seconds, for the metrics that sites let out of their test images at the end; 0:
            nobody is asked (a simulation reads test images itself).
        deliver_s: the longest wait, in seconds, for sites that take the signed model; 0: nobody is sent it.
        patience: rounds of a stage without a better one after which the stage ends; 0: it never ends early.
        metrics_every: every so many rounds, and in a stage's last, sites are asked for validation metrics.
        metrics_share: share of the sites that can answer of whom these are asked, in (0, 1].
        one_exchange: ask for a round's metrics with the next round's training where that can be; the run comes to the
            same (:mod:`server.judging`).
    """

    stages: Sequence[str]
    sites: Sequence[str] | None = None
    quorum: float = 1.0
    deadline_s: float = 86400.0
    join_s: float = 300.0
    poll_s: float = 0.1
    test_s: float = 0.0
    deliver_s: float = 0.0
    patience: int = 0
    metrics_every: int = 1
    metrics_share: float = 1.0
    one_exchange: bool = False

    def judged_by(self, deadline: float) -> float:
        """Until when a round's weights may be judged, in monotonic seconds.

        A site that said nothing while the others trained was waited for until the deadline: nobody could be asked for
        metrics then, and the round would miss the quorum that its training had.

        Args:
            deadline: of the round.
        """
        return max(deadline, time.monotonic() + JUDGED_SHARE * self.deadline_s)
