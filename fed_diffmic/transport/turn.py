"""Sites that share a machine take turns: one of them at a time holds a request, its model and its optimizer.

A turn is a lock on a file that their operators name (``site.turn``), held by a site's SuperNode from the moment at
which it knows of a request, before any of its content comes, until the reply is delivered. The kernel gives it back
when that process ends, however it ends. Nobody waits inside a call: a site that has no turn looks again.

The file must be one: a link could lead anywhere, and opening a pipe waits for whoever writes into it. One that was
removed while it was waited for is no turn, and a new one is looked for. (Who removes it while another site holds it
lets two sites compute at once; it is touched at each turn, so that what cleans folders by age leaves it.)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class Turn:
    """One site's turn.

    Args:
        path: the file that the machine's sites share; none: there are no turns, and it is always one's own.
        longest_s: after so many seconds without it the site says that it waited in vain.
        clock: seconds that never go back.
    """

    def __init__(self, path: str | None, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._longest, self._clock = None if path is None else Path(path), longest_s, clock
        self._held: int | None = None
        self._since: float | None = None

    def take(self) -> bool:
        """Whether it is this site's turn, now or already.

        Raises:
            OSError: the file cannot be opened, or is no file.
        """
        if self._path is None or self._held is not None:
            return True
        self._since = self._clock() if self._since is None else self._since
        file = _opened(self._path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = _is_at(file, self._path)
        except BlockingIOError:
            mine = False
        except OSError:
            os.close(file)
            raise
        if not mine:
            os.close(file)
            return False
        with suppress(OSError):  # another user's
            os.utime(file)
        self._held, self._since = file, None
        return True

    def in_vain(self) -> bool:
        """Whether it was waited for too long; the next wait begins anew."""
        if self._since is None or self._clock() - self._since < self._longest:
            return False
        self._since = None
        return True

    def give(self) -> None:
        """The next one's turn; what this process freed goes back to the machine before."""
        self._since = None
        if self._held is not None:
            trim()
            os.close(self._held)
            self._held = None


def _opened(path: Path) -> int:
    """The file, made if it is not there.

    Raises:
        OSError: it cannot be opened, or is a link, a folder, a pipe or a device.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link")
    file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no file")
    return file


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is what the path names now."""
    try:
        there, held = os.lstat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def trim() -> None:
    """Give freed memory back to the machine, where the C library can: it keeps what was freed in many pieces."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
