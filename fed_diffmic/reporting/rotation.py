"""Logs that stay small: what has grown long is set aside, a few old parts are kept, the oldest goes.

For logs that tell how a program does. An audit log or a ledger is never set aside: their lines are a chain.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

LOG_BYTES = 10 * 2**20
PARTS = 3


def set_aside(path: Path, *, held: bool = False, most: int = LOG_BYTES, parts: int = PARTS) -> bool:
    """Move a log that is longer than ``most`` bytes to ``<name>.1``, what lay there to ``.2``, and so on.

    Several processes may append and set aside at once: one of them does it, under a lock of the folder. Who appends
    by opening the file for each line loses none: a line written meanwhile goes to the part that was set aside.

    Args:
        path: the log; that it is missing is no fault.
        held: a process keeps it open, so it is copied and cut rather than renamed; lines written between the two are
            lost.
        most: bytes.
        parts: how many old parts are kept.

    Returns:
        Whether it was set aside.

    Raises:
        OSError: no space, no permission.
    """
    if not _is_long(path, most):
        return False
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # another process is at it
        if not _is_long(path, most):
            return False
        for number in range(parts, 1, -1):
            older = _part(path, number - 1)
            if older.exists():
                os.replace(older, _part(path, number))
        if not held:
            os.replace(path, _part(path, 1))
            return True
        with path.open("rb") as source, open(_part(path, 1), "wb", opener=_private) as target:
            shutil.copyfileobj(source, target)
        os.truncate(path, 0)
        return True
    finally:
        os.close(folder)


def _is_long(path: Path, most: int) -> bool:
    try:
        return path.stat().st_size > most
    except FileNotFoundError:
        return False


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
