"""What the worker did, for the site's people: a line for each task in the run's state folder, read by the supervisor.

Not a record (that is the audit log): it is begun anew with each start of the site, cut when it grows, and not flushed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fed_diffmic.exchange.failures import failure_sentence
from fed_diffmic.exchange.remedies import at_site

FILE = "journal.jsonl"
LONGEST = 2**20
AGAIN_S = 600.0
"""The same refusal is said again after so long: a paused site is asked every few seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A task that was answered or refused.

    Attributes:
        at: seconds since the epoch.
        task: ``query``, ``train``, ``evaluate``, ``conform``, ``assess`` or ``labels``.
        run, stage, round, rounds: of the request, as far as it says (empty, 0).
        last: whether it is of the run's last stage.
        code: of the failure; 0: it was answered.
        seconds: it took.
    """

    at: float
    task: str
    run: str = ""
    stage: str = ""
    round: int = 0
    rounds: int = 0
    last: bool = False
    code: int = 0
    seconds: float = 0.0

    @property
    def place(self) -> str:
        """Run, stage and round in words."""
        of = f" of {self.rounds}" if self.rounds else ""
        where = f", {self.stage} round {self.round}{of}" if self.stage and self.round else ""
        return f"run {self.run}{where}" if self.run else "a request of the coordinator's"

    def sentence(self) -> str:
        """What the console says; empty for what is not worth a line."""
        if self.code:
            return f"{self.place}: refused: {failure_sentence(self.code)} (code {self.code}). {at_site(self.code)}"
        if self.task == "query":
            return f"{self.place}: this site takes part"
        if self.task == "assess":
            return f"{self.place}: metrics of the finished model were given; the run's training is over"
        if self.task == "train":
            done = f"{self.place}: update computed in {self.seconds:.0f} s and handed in"
            over = self.last and 0 < self.rounds <= self.round
            return f"{done}; this was the run's last round" if over else done
        return ""


class Journal:
    """The file, for the worker that writes and the supervisor that reads.

    Args:
        run: folder of the state files of the running processes.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / FILE
        self._read = self._count = 0
        self._said: dict[tuple[str, int], float] = {}

    def forget(self) -> None:
        """Begin anew, where a site starts."""
        self._path.unlink(missing_ok=True)
        self._read = self._count = 0

    def add(self, task: str, facts: Mapping[str, Any], *, code: int = 0, seconds: float = 0.0) -> None:
        """A line; that it cannot be written stops nothing."""
        known = {name: facts[name] for name in ("run", "stage", "round", "rounds", "last") if name in facts}
        entry = Entry(time.time(), task, **known, code=code, seconds=round(seconds, 1))
        try:
            if self._path.exists() and self._path.stat().st_size > LONGEST:
                self._path.unlink()
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(entry)) + "\n")
        except OSError:
            logger.warning("the journal cannot be written")

    def entries(self) -> list[Entry]:
        """All that is there."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError:
            return []
        found = []
        for line in text.splitlines():
            try:
                found.append(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found

    def news(self) -> list[Entry]:
        """What is worth saying of what came since the last call; the same refusal once in :data:`AGAIN_S`."""
        try:
            size = self._path.stat().st_size
        except OSError:
            size = 0
        if size == self._read:
            return []
        entries = self.entries()
        fresh = entries if size < self._read else entries[self._count :]
        self._read, self._count = size, len(entries)
        return [entry for entry in fresh if entry.sentence() and self._due(entry)]

    def _due(self, entry: Entry) -> bool:
        if not entry.code and entry.task != "query":
            return True
        key = (entry.run, entry.code)
        if entry.at - self._said.get(key, 0.0) < AGAIN_S:
            return False
        self._said[key] = entry.at
        return True
