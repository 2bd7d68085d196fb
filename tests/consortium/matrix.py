"""Who fails, when and how: the cells of the matrix of faults, and what came of each."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass

from tests.consortium.settings import SITES

RECORDS = "FED_DIFFMIC_RELIABILITY"
STRUCK = SITES[0]
RUN_S = 400.0
REQUEST_BYTES = 40_000

WHO = ("site worker", "SuperNode", "site supervisor", "SuperLink", "coordinator", "link", "site", "site's disk",
       "coordinator's disk")  # fmt: skip
WHEN = ("before the task", "during training", "after training, before delivery", "during delivery",
        "during aggregation", "during checkpoint")  # fmt: skip
HOW = ("SIGKILL", "SIGSTOP", "stalled for a while", "cut for a while", "stalled for good", "full", "clock 10 s ahead",
       "clock 10 min ahead")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One fault.

    Attributes:
        who, when, how: what happens (:data:`WHO`, :data:`WHEN`, :data:`HOW`).
        normal: among those of every run of the tests, with short intervals; all run with Flower's own as ``slow``.
        failure: words of the clear failure in which it must end (before the cause is mended and the run continued);
            empty: it must end by itself.
        settings: of the coordinator.
    """

    who: str
    when: str
    how: str
    normal: bool = False
    failure: str = ""
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the test's id and its folder."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.who} {self.when} {self.how}".lower())


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        outcome: in words.
        seconds: from the fault to the end of the round that it struck.
        recovery_s: from the fault to the struck site's next good reply.
    """

    who: str
    when: str
    how: str
    heartbeat_s: float
    outcome: str = ""
    seconds: float = 0.0
    recovery_s: float | None = None

    def record(self) -> None:
        """Append it to the file that :data:`RECORDS` names, if it does."""
        path = os.environ.get(RECORDS)
        if path:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(self)) + "\n")


LOST = (
    "did not reply before the deadline|process failed or is not there|no time was left|it is not connected|"
    "could not be reached"
)
MATRIX = (
    Cell("site worker", "before the task", "SIGKILL"),
    Cell("site worker", "during training", "SIGKILL", normal=True),
    Cell("site worker", "during training", "SIGSTOP"),
    Cell("site worker", "after training, before delivery", "SIGKILL"),
    Cell("site worker", "during delivery", "SIGKILL"),
    Cell("SuperNode", "before the task", "SIGKILL"),
    Cell("SuperNode", "during training", "SIGKILL"),
    Cell("SuperNode", "during training", "SIGSTOP"),
    Cell("SuperNode", "after training, before delivery", "SIGKILL"),
    Cell("SuperNode", "during delivery", "SIGKILL"),
    Cell("site supervisor", "before the task", "SIGKILL"),
    Cell("site supervisor", "during training", "SIGKILL"),
    Cell("site supervisor", "during training", "SIGSTOP"),
    Cell("site supervisor", "after training, before delivery", "SIGKILL"),
    Cell("site supervisor", "during delivery", "SIGKILL"),
    Cell("SuperLink", "before the task", "SIGKILL"),
    Cell("SuperLink", "during training", "SIGKILL", normal=True),
    Cell("SuperLink", "during training", "SIGSTOP"),
    Cell("SuperLink", "during delivery", "SIGKILL"),
    Cell("SuperLink", "during aggregation", "SIGKILL"),
    Cell("SuperLink", "during checkpoint", "SIGKILL"),
    Cell("coordinator", "before the task", "SIGKILL"),
    Cell("coordinator", "during training", "SIGKILL"),
    Cell("coordinator", "during training", "SIGSTOP"),
    Cell("coordinator", "during delivery", "SIGKILL"),
    Cell("coordinator", "during aggregation", "SIGKILL"),
    Cell("coordinator", "during checkpoint", "SIGKILL", normal=True),
    Cell("link", "before the task", "cut for a while"),
    Cell("link", "during training", "cut for a while"),
    Cell("link", "during training", "stalled for good", failure=LOST,
         settings=("run.deadline_s=30",)),
    Cell("link", "during delivery", "stalled for a while"),
    Cell("link", "during delivery", "cut for a while"),
    Cell("site's disk", "during training", "full", failure="1 of 3|2 of 3"),
    Cell("coordinator's disk", "during checkpoint", "full", failure="space", normal=True),
    Cell("site", "before the task", "clock 10 s ahead", failure=LOST, settings=("run.deadline_s=30",)),
    Cell("site", "during training", "clock 10 min ahead", failure=LOST, settings=("run.deadline_s=30",)),
    Cell("coordinator", "during training", "clock 10 s ahead"),
)  # fmt: skip
