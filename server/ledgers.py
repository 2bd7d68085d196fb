"""What the coordinator keeps of the sites' privacy ledgers, for each key, over all runs.

A site that was restored from an older copy, or that began another folder under the same key, cannot know what it
forgot. So the head of its ledger and what it said it had spent stand in one file beside the roster, and go out with the
first request of every run: the site compares (:mod:`fed_diffmic.privacy.continuity`). Nothing in it is about a patient.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fed_diffmic.errors import LedgerError, MachineError, ModelFileError
from fed_diffmic.exchange.claims import parse_claim
from fed_diffmic.files import read_json, write_json
from fed_diffmic.privacy.ledger_lines import Seen, parse_seen
from fed_diffmic.provision.keys import fingerprint
from fed_diffmic.provision.roster import Roster

LOCK_S = 10.0
_VERSION = 1
REMEDY = "Restore it from a backup: without it a site whose ledger went back would not be noticed."


def memory_path(named: str | None, roster: Path, run: Path) -> Path:
    """Where all runs of a coordinator keep it: ``security.ledgers``, else beside the roster, else beside the runs.

    Args:
        named: ``security.ledgers``.
        roster: file of the roster; its folder may be mounted read-only.
        run: folder of this run.
    """
    if named is not None:
        return Path(named)
    beside = roster.with_name(roster.name + ".ledgers.json")
    return beside if os.access(beside.parent, os.W_OK) else run.parent / beside.name


@dataclass(frozen=True)
class LedgerMemory:
    """The file, read and written anew each time: several runs may share it.

    Attributes:
        path: the file (0600), with ``.lock`` beside it.
        roster: file of the roster, which says whose key is whose.
    """

    path: Path
    roster: Path

    def check(self) -> None:
        """Refuse to start on a file that cannot be read, or a folder that cannot be written.

        Raises:
            ModelFileError: it is damaged.
            MachineError: it cannot be written.
        """
        self._read()
        if not os.access(self.path if self.path.exists() else self.path.parent, os.W_OK):
            raise MachineError(
                f"{self.path} cannot be written: what sites' privacy ledgers held is kept there",
                "Name a file that can be written and that all runs share: security.ledgers.",
            )

    def echo(self, site: str) -> str:
        """What was seen last of a site's ledger, as it crosses; empty: nothing.

        A site with a new key gets what was seen of its name's last key: its patients are the same.
        """
        keys = self._read()
        entry = keys.get(self._fingerprint(site))
        if entry is None:
            named = sorted((e for e in keys.values() if e["site"] == site), key=lambda e: float(e["time"]))
            entry = named[-1] if named else None
        return "" if entry is None else _seen(entry).text()

    def saw(self, site: str, head: str, claim: str, run: str) -> None:
        """Keep what a good reply says of the site's ledger, before anything is made of the reply.

        Args:
            site: its name in the roster.
            head: of its ledger, as it crossed; empty: it has none.
            claim: its privacy claim, as it crossed; empty or none: what was spent stays as it was said before.
            run: name of the run.

        Raises:
            MachineError: it cannot be written, or another process holds it.
        """
        try:
            seen = parse_seen(head)
        except LedgerError:
            return  # the site's own word; it is compared by the site alone
        key = self._fingerprint(site)
        if seen is None or not key:
            return
        said = parse_claim(claim).get("epsilon_total", 0.0)
        spent = math.inf if said < 0 else said
        try:
            with FileLock(str(self.path) + ".lock", timeout=LOCK_S, mode=0o600):
                keys = self._read()
                before = _seen(keys[key]).spent if key in keys else 0.0
                kept = max(spent, before)
                keys[key] = {
                    "site": site,
                    "head": seen.head.length,
                    "digest": seen.head.digest,
                    "spent": None if math.isinf(kept) else kept,
                    "run": run,
                    "time": time.time(),
                }
                write_json(self.path, {"version": _VERSION, "keys": keys}, mode=0o600)
        except Timeout as error:
            raise MachineError(f"{self.path} is held by another process", "End the other process.") from error
        except OSError as error:
            raise MachineError(f"{self.path} cannot be written: {error.strerror}", "Free space.") from error

    def _fingerprint(self, site: str) -> str:
        """Of the key that the roster admits under that name; empty: none."""
        return next((fingerprint(e.key) for e in Roster.load(self.roster).sites if e.name == site), "")

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        value = read_json(self.path)
        try:
            keys = dict(value["keys"])
            for entry in keys.values():
                _seen(entry)
            if value["version"] != _VERSION or not all(isinstance(e["site"], str) for e in keys.values()):
                raise ValueError("another version")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"{self.path} is damaged", REMEDY) from error
        return keys


def _seen(entry: Mapping[str, Any]) -> Seen:
    spent = math.inf if entry["spent"] is None else float(entry["spent"])
    text = f"{entry['head']}:{entry['digest']}:{spent!r}"
    try:
        found = parse_seen(text)
    except LedgerError as error:
        raise ValueError("not a head") from error
    if found is None:
        raise ValueError("not a head")
    float(entry["time"])
    return found
