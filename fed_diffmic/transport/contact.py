"""What a SuperNode says about itself to its supervisor and worker: one small file, replaced as it changes.

Fields: ``pid``; ``port`` of its loopback listener; ``alive``, ``contact`` and ``worker``, the times at which it lived,
last heard from the coordinator and last heard from the worker (seconds since the epoch, 0: never); ``connected``;
``busy`` (a request is in hand); ``problem`` (the last failure in our words, empty after the next success);
``dropped`` and ``why``: how many replies were given up undelivered, and why the last one was.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it loads Flower, for which a supervisor need not wait
    from fed_diffmic.transport.refusals import Refusal

FILE = "supernode.json"
TICK_S = 1.0
AT_ONCE = ("port", "connected", "busy", "problem", "dropped")


@dataclass(frozen=True)
class Contact:
    """A SuperNode's account of itself."""

    pid: int = 0
    port: int = 0
    alive: float = 0.0
    contact: float = 0.0
    worker: float = 0.0
    connected: bool = False
    busy: bool = False
    problem: str = ""
    dropped: int = 0
    why: str = ""


def read_contact(folder: Path) -> Contact | None:
    """The last account, or none (yet)."""
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Contact(**value)
    except (OSError, ValueError, TypeError):
        return None


class Reporter:
    """Keeps the account, written at most a few times a second and at least every :data:`TICK_S`.

    Args:
        folder: where the file lies.

    Attributes:
        now: the account.
        refusal: what the SuperLink's last answer meant, where it was a refusal of ours.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lock = threading.Lock()
        self.now = Contact(pid=os.getpid())
        self.refusal: Refusal | None = None
        threading.Thread(target=self._tick, daemon=True, name="contact").start()

    def set(self, *, at_once: bool = False, **facts: Any) -> None:
        """Change fields; written at the next tick, or at once."""
        with self._lock:
            changed = replace(self.now, **facts)
            at_once = at_once or any(getattr(changed, name) != getattr(self.now, name) for name in AT_ONCE)
            self.now = changed
        if at_once:
            self.write()

    def heard(self) -> None:
        """The coordinator answered."""
        self.set(contact=time.time(), problem="")

    def drop(self, why: str) -> None:
        """A reply was given up."""
        self.set(dropped=self.now.dropped + 1, why=why)

    def worker_seen(self) -> None:
        """The worker asked something."""
        self.set(worker=time.time())

    def write(self) -> None:
        """Replace the file (not flushed to the disk: it says nothing after a power cut)."""
        with self._lock:
            self.now = replace(self.now, alive=time.time())
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(asdict(self.now)), encoding="utf-8")
            part.replace(self._path)

    def _tick(self) -> None:
        while True:
            try:
                self.write()
            except OSError:  # a full disk must not stop what the file is about
                time.sleep(TICK_S)
            time.sleep(TICK_S)
