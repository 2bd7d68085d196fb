"""A run's history on disk: a line a round, only ever added to, so that a round costs the same however many there were.

A checkpoint's pointer says how many lines are its own and names them by a digest over all of them, so what a kill left
behind the last whole round is cut off, and what was changed or lost is noticed. The pointer before names fewer lines of
the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fed_diffmic.errors import MachineError, ModelFileError

Row = dict[str, Any]


class KeptHistory:
    """The file of a run's rounds.

    Args:
        path: made when the first round is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows, self._bytes, self._digest = 0, 0, hashlib.sha256()

    def keep(self, history: Sequence[Row]) -> dict[str, Any]:
        """Make the file hold these rows; durable before it returns.

        Args:
            history: the rows that are kept already, unchanged, and those that are new.

        Returns:
            what the pointer says of it.

        Raises:
            MachineError: no space, no permission.
        """
        if len(history) < self._rows:  # another run state than the one that was read or kept last
            self._rows, self._bytes, self._digest = 0, 0, hashlib.sha256()
        new = history[self._rows :]
        data = b"".join(json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n" for row in new)
        if data:
            self._append(data)
            self._rows += len(new)
            self._bytes += len(data)
            self._digest.update(data)
        return {"rows": self._rows, "digest": self._digest.hexdigest()}

    def read(self, facts: Any) -> list[Row]:
        """The rows that a pointer names.

        Raises:
            ModelFileError: they are not there, or others.
            KeyError, TypeError: the pointer does not name any.
        """
        rows, named = int(facts["rows"]), facts["digest"]
        lines: list[bytes] = []
        try:
            if rows:
                with self.path.open("rb") as stream:
                    lines = [stream.readline() for _ in range(rows)]
        except OSError as error:
            raise ModelFileError(f"{self.path} cannot be read: {error.strerror}") from error
        data = b"".join(lines)
        digest = hashlib.sha256(data)
        if digest.hexdigest() != named:
            raise ModelFileError(f"{self.path} does not hold the {rows} rounds that the checkpoint names")
        self._rows, self._bytes, self._digest = rows, len(data), digest
        return [json.loads(line) for line in lines]

    def _append(self, data: bytes) -> None:
        """Behind the rows that are kept; what a kill left there goes."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.ftruncate(fd, self._bytes)
                os.lseek(fd, self._bytes, os.SEEK_SET)
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise MachineError(
                f"cannot write {self.path.name} in {self.path.parent}: {error.strerror}", "Free space, then resume."
            ) from error
