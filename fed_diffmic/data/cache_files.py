"""Where the decoded copies of images lie: folder, index and seal, purge (see :mod:`fed_diffmic.data.cache`)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from fed_diffmic.errors import MachineError
from fed_diffmic.files import atomic_write

SUBFOLDER = "images-cache"
FORMAT = 1

TAG = "CACHEDIR.TAG"

_BLOCK = 1 << 24
_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# Decoded copies of patients' images: do not back up, do not share.
"""


@dataclass(frozen=True)
class CacheIndex:
    """What KEY.json says. ``rows``: content digests in the array's order; ``bad``: digest -> reason."""

    rows: list[str]
    bad: dict[str, str]
    crc32: int

    def to_json(self) -> dict[str, object]:
        """As written, sealed by its own digest."""
        body = {"format": FORMAT, "rows": self.rows, "bad": self.bad, "crc32": self.crc32}
        return body | {"seal": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}

    @classmethod
    def read(cls, path: Path) -> CacheIndex | None:
        """The index, or None if it is missing or torn."""
        try:
            value = json.loads(path.read_bytes())
            index = cls(list(value["rows"]), dict(value["bad"]), int(value["crc32"]))
            return index if value == index.to_json() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def prepare_folder(folder: Path) -> Path:
    """Create the cache's own folder, 0700 and ours: other users of the machine must not see into it."""
    home = folder / SUBFOLDER
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():
            raise MachineError(
                f"{home} belongs to somebody else or is a link", "Name another folder: dataset.cache_dir=..."
            )
        os.chmod(home, 0o700)
        tag = home / TAG
        if not tag.exists():
            atomic_write(tag, _TAG, mode=0o600)
    except OSError as error:
        raise MachineError(
            f"the image cache cannot be made in {folder}: {error.strerror}",
            "Name a folder you may write to: dataset.cache_dir=...",
        ) from error
    return home


def intact_index(array_path: Path, index_path: Path, side: int) -> CacheIndex | None:
    """The index if array and index are whole and belong together, else None."""
    index = CacheIndex.read(index_path)
    if index is None:
        return None
    try:
        if array_path.stat().st_size != len(index.rows) * 3 * side * side:
            return None
        crc = 0
        with open(array_path, "rb") as stream:
            while block := stream.read(_BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError:
        return None
    return index if crc == index.crc32 else None


@dataclass(frozen=True)
class Copy:
    """A decoded copy of a set of images at one side.

    Attributes:
        name: KEY of its files.
        bytes: of the images.
        used: when it was opened last, seconds since the epoch.
    """

    name: str
    bytes: int
    used: float


def copies(home: Path) -> list[Copy]:
    """The copies in a cache's folder, finished or not."""
    found = []
    for path in home.glob("*.u8"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append(Copy(path.stem, status.st_size, status.st_mtime))
    return found


def hold(array_path: Path) -> BinaryIO:
    """Say that a copy is in use, for as long as the returned file is open: nobody removes it meanwhile."""
    stream = array_path.open("rb")
    with contextlib.suppress(OSError):  # a file system without locks: then a removed copy lives until it is closed
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return stream


def remove_copy(home: Path, name: str) -> int | None:
    """Remove a copy with its index; the bytes freed, or none where a process uses it or builds it.

    Raises:
        MachineError: it cannot be removed.
    """
    path = home / f"{name}.u8"
    try:
        with FileLock(home / f"{name}.lock", timeout=0, mode=0o600), path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = path.stat().st_size
            (home / f"{name}.json").unlink(missing_ok=True)
            path.unlink()
            (home / f"{name}.lock").unlink(missing_ok=True)
            return size
    except FileNotFoundError:
        return 0
    except (Timeout, BlockingIOError):
        return None
    except OSError as error:
        raise MachineError(
            f"decoded images in {home} cannot be removed: {error.strerror}", "Check the folder's owner and mode."
        ) from error


def remove_unfinished(home: Path, but: str = "") -> None:
    """Remove what builders that were killed left behind, where nobody builds now.

    Args:
        but: name of a copy that is left alone, for the caller builds it.
    """
    for part in home.glob("*.part-*"):
        name = part.name.split(".part-")[0]
        if name != but:
            with contextlib.suppress(Timeout, OSError), FileLock(home / f"{name}.lock", timeout=0, mode=0o600):
                part.unlink(missing_ok=True)


def survey(folder: Path) -> tuple[list[Copy], list[Copy]]:
    """The copies under ``folder`` that a purge would remove, and those that a process uses and that would stay."""
    home = Path(folder) / SUBFOLDER
    free: list[Copy] = []
    used: list[Copy] = []
    for copy in copies(home) if home.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):
            (free if _free(home / f"{copy.name}.u8") else used).append(copy)
    return free, used


def purge(folder: Path) -> int:
    """Remove every decoded copy of images under ``folder`` that no process uses; nothing else is touched.

    Returns:
        Number of bytes removed (0 if there was no cache).

    Raises:
        MachineError: a process is building a cache there, or a file cannot be removed.
    """
    home = Path(folder) / SUBFOLDER
    if not home.is_dir():
        return 0
    removed = 0
    try:
        with contextlib.ExitStack() as stack:
            for lock in sorted(home.glob("*.lock")):
                stack.enter_context(FileLock(lock, timeout=0))
            used = {copy.name for copy in copies(home) if not _free(home / f"{copy.name}.u8")}
            for file in home.iterdir():
                if file.stem not in used and not (used and file.name == TAG):
                    removed += file.lstat().st_size
                    file.unlink()
        if not used:
            home.rmdir()
    except Timeout as error:
        raise MachineError(
            f"a process is building an image cache in {home}", "Wait for it, or end it, and purge again."
        ) from error
    except OSError as error:
        raise MachineError(
            f"the image cache in {home} cannot be removed: {error.strerror}", "Check the folder's owner and mode."
        ) from error
    return removed


def _free(array_path: Path) -> bool:
    """Whether no process holds a copy."""
    try:
        with array_path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def no_space(folder: Path, needed: int, why: str) -> MachineError:
    """The error of a cache of ``needed`` bytes that does not fit into ``folder``."""
    return MachineError(
        f"the image cache needs {needed / 1e6:,.1f} MB in {folder}: {why}",
        "Free space, or name another folder: dataset.cache_dir=...; a run with a smaller model.image_side needs less.",
    )
