"""What of a site's part must outlive a kill: its state, one for each run, arm, stage and purpose, and its audit log."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.files import private_folder, read_json, write_json

Place = tuple[str, str, str, str]


class MaskingStore(Protocol):
    """Where a site keeps its part. When a call returns, what it was given is on disk; one process uses it at a time."""

    def load(self, place: Place) -> dict[str, Any] | None:
        """The state that was saved last; none: nothing was."""

    def save(self, place: Place, state: dict[str, Any]) -> None:
        """Put a state (JSON values) in the place of the last one."""

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        """Append a line to the site's audit log."""


class FileStore:
    """A private folder of small files.

    Args:
        folder: made (0700) where it is missing.
        log: appends to the site's audit log: the kind of a line, and its facts.
    """

    def __init__(self, folder: str | os.PathLike[str], log: Callable[[str, dict[str, Any]], object]) -> None:
        self.folder = Path(folder)
        self._log = log

    def load(self, place: Place) -> dict[str, Any] | None:
        """As :class:`MaskingStore`.

        Raises:
            MachineError: the file cannot be read: what was signed is not known then, so nothing more is.
        """
        path = self._file(place)
        try:
            return dict(read_json(path)) if path.exists() else None
        except (ModelFileError, TypeError, ValueError) as error:
            raise MachineError(
                f"what this site keeps of the run's masked sums cannot be read: {path}",
                "Restore the file from the backup. Without it the site takes no part in the run's masked sums.",
            ) from error

    def save(self, place: Place, state: dict[str, Any]) -> None:
        """As :class:`MaskingStore` (0600)."""
        write_json(self._file(place), state, mode=0o600)

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        """As :class:`MaskingStore`."""
        self._log(kind, facts)

    def _file(self, place: Place) -> Path:
        """Whatever characters the names hold: no path in them can matter."""
        name = hashlib.sha256(canonical({"place": list(place)}).encode()).hexdigest()[:32]
        return private_folder(self.folder) / f"{name}.json"


class MemoryStore:
    """For a process that plays all parts and ends with them: simulations, tests."""

    def __init__(self) -> None:
        self.states: dict[Place, str] = {}
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def load(self, place: Place) -> dict[str, Any] | None:
        """As :class:`MaskingStore`."""
        return dict(json.loads(self.states[place])) if place in self.states else None

    def save(self, place: Place, state: dict[str, Any]) -> None:
        """As :class:`MaskingStore`."""
        self.states[place] = json.dumps(state)

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        """As :class:`MaskingStore`."""
        self.lines.append((kind, facts))
