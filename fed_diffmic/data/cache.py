"""Decode once: a memory-mapped uint8 copy of a data set's images, keyed by content and settings.

The copy lies in ``<folder>/images-cache`` (0700, files 0600: they are patients' images) and is named
by what is in it: a digest over the contents of the files, the side and the decoder's versions. No file
name and no patient is in the cache, not even in its index. Its files::

    CACHEDIR.TAG    tells backup programs to leave the folder out
    memo.bin        (salted digest of path, size and times) -> content digest, to spare a second hashing
    KEY.lock        held while a process builds
    KEY.part-*      being built; what a killed builder left is removed by the next one
    KEY.u8          images, (rows, 3, H, H) uint8
    KEY.json        index and seal, renamed into place last: without it nothing was finished
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import PIL
from filelock import FileLock, Timeout

from fed_diffmic.data.cache_files import FORMAT, CacheIndex, hold, intact_index, no_space, prepare_folder, purge
from fed_diffmic.data.decode import DECODE_VERSION, BadImageError, decode, read_content
from fed_diffmic.data.dicom.reasons import readers
from fed_diffmic.data.memo import DigestMemo
from fed_diffmic.errors import DataError, MachineError
from fed_diffmic.files import sync_folder, write_json

if TYPE_CHECKING:
    import torch

__all__ = ["ImageCache", "build_cache", "content_key", "purge"]

LOCK_TIMEOUT_S = 4 * 3600.0
"""Seconds to wait for another process that builds the same cache before giving up."""

T = TypeVar("T")
R = TypeVar("R")
_CHUNK = 128

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("hashing" or "decoding"), how many images are done, of how many."""

Room = Callable[[str, int], None]
"""Called with the name of a copy that is about to be written and its bytes; makes room for it, or raises."""


class ImageCache:
    """Decoded images of a list of files, read from a memory map.

    Positions are those of the ``paths`` given to :func:`build_cache`; files with equal content share one
    copy. Sending the object to another process sends the location, not the images.

    Attributes:
        digests: SHA-256 (hex) of each file's content; "" for a file that could not be read.
        keys: (N,) uint64, a stable number below 2**63 from each digest; 0 where there is none.
        bad: position -> reason code (``decode.REASONS``) of the files that are no usable image.
        image_side: H, pixels.
    """

    def __init__(
        self, array_path: Path, image_side: int, slots: np.ndarray, digests: list[str], bad: dict[int, str]
    ) -> None:
        self.image_side = image_side
        self.digests = digests
        self.bad = bad
        self.keys = np.array([content_key(d) for d in digests], dtype=np.uint64)
        self._path = array_path
        self._slots = slots
        self._held = hold(array_path)  # as long as this object lives, no other process removes the copy
        self._array = _open_array(array_path, image_side)

    def __len__(self) -> int:
        return len(self.digests)

    def __reduce__(self) -> tuple[type[ImageCache], tuple[Path, int, np.ndarray, list[str], dict[int, str]]]:
        return ImageCache, (self._path, self.image_side, self._slots, self.digests, self.bad)

    @property
    def name(self) -> str:
        """Names the copy: content, side and versions of the decoder."""
        return self._path.stem

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images on disk."""
        return int(self._array.nbytes)

    def images(self, rows: np.ndarray | Sequence[int]) -> torch.Tensor:
        """Read images.

        Args:
            rows: (n,) positions in the list of paths.

        Returns:
            (n, 3, H, H) uint8, a copy.

        Raises:
            DataError: a row holds no usable image.
        """
        import torch  # the tables of a data set are read, and its options listed, without it

        slots = self._slots[np.asarray(rows, dtype=np.int64)]
        if (slots < 0).any():
            raise DataError(
                f"{int((slots < 0).sum())} of the images asked for could not be decoded",
                "Leave out the positions in `bad` (dataset.on_bad_image=skip does).",
            )
        return torch.from_numpy(np.array(self._array[slots]))


def content_key(digest: str) -> int:
    """A stable number in [0, 2**63) from a content digest; 0 for the empty digest."""
    return int(digest[:16], 16) >> 1 if digest else 0


def _open_array(path: Path, side: int) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing was decodable; an empty file cannot be mapped
        return np.zeros((0, 3, side, side), np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, side, side)


def build_cache(
    paths: Sequence[str],
    *,
    image_side: int,
    folder: Path,
    workers: int = 0,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    progress: Progress | None = None,
    room: Room | None = None,
) -> ImageCache:
    """Open the decoded copy of ``paths``, building it first where it is missing, torn or of other content.

    Two processes may call this at once: one builds, the other waits for it. Files that are no usable
    image do not raise; they are in ``ImageCache.bad``.

    Args:
        paths: image files; the same file or content may occur several times.
        image_side: H, pixels; images are stretched to (H, H).
        folder: where the site allows copies of its images; the cache is a subfolder (0700) of it.
        workers: threads that read and decode; 0: one a core.
        lock_timeout_s: seconds to wait for another process that builds the same cache.
        progress: called as the work goes on.
        room: called before a copy is written; raises where it may not be.

    Raises:
        MachineError: no space or no permission; another process still builds when the time is up.
        DataError: a file changed while it was read.
    """
    workers = workers or _cores()
    report = progress or (lambda what, done, total: None)
    home = prepare_folder(Path(folder))
    memo = DigestMemo(home / "memo.bin")
    found = list(_in_chunks(memo.digest_of, paths, workers, lambda done: report("hashing", done, len(paths))))
    memo.save()
    where = {digest: str(path) for path, (digest, _) in zip(paths, found, strict=True) if digest}
    contents = sorted(where)
    key = _key(contents, image_side)
    array_path, index_path = home / f"{key}.u8", home / f"{key}.json"
    index = intact_index(array_path, index_path, image_side)
    if index is None:
        try:
            with FileLock(home / f"{key}.lock", timeout=lock_timeout_s, mode=0o600):
                index = intact_index(array_path, index_path, image_side)
                if index is None:
                    if room is not None:
                        room(key, len(contents) * 3 * image_side * image_side)
                    index = _build(
                        contents,
                        where,
                        array_path,
                        index_path,
                        image_side,
                        workers,
                        lambda n: report("decoding", n, len(contents)),
                    )
        except Timeout as error:
            raise MachineError(
                f"another process has been building the image cache in {home} for {lock_timeout_s:g} s",
                "Wait for it, or end it; what it left unfinished is cleaned up.",
            ) from error
    os.utime(array_path)  # when it was used last
    slot_of = {digest: slot for slot, digest in enumerate(index.rows)}
    slots = np.array([slot_of.get(digest, -1) for digest, _ in found], dtype=np.int64)
    reasons = {i: reason or index.bad.get(digest, "") for i, (digest, reason) in enumerate(found)}
    bad = {i: reason for i, reason in reasons.items() if reason}
    return ImageCache(array_path, image_side, slots, [digest for digest, _ in found], bad)


def _key(contents: list[str], side: int) -> str:
    settings = {"format": FORMAT, "decode": DECODE_VERSION, "pillow": PIL.__version__, "side": side}
    settings["dicom"] = readers()  # a file that no package could read is read when one is there
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for content in contents:
        digest.update(bytes.fromhex(content))
    return digest.hexdigest()[:40]


def _build(
    contents: list[str],
    where: dict[str, str],
    array_path: Path,
    index_path: Path,
    side: int,
    workers: int,
    done: Callable[[int], None],
) -> CacheIndex:
    """Decode into a temporary file, rename it, then write the index; on any failure nothing is left."""
    for stale in array_path.parent.glob(f"{array_path.stem}.part-*"):
        stale.unlink(missing_ok=True)
    index_path.unlink(missing_ok=True)
    needed, free = len(contents) * 3 * side * side, shutil.disk_usage(array_path.parent).free
    if needed > free:
        raise no_space(array_path.parent, needed, f"{free / 1e6:,.1f} MB are free")
    rows: list[str] = []
    bad: dict[str, str] = {}
    crc = 0
    temporary = None
    try:
        fd, name = tempfile.mkstemp(dir=array_path.parent, prefix=f"{array_path.stem}.part-")  # mkstemp: 0600
        temporary = Path(name)
        with os.fdopen(fd, "wb") as stream:
            decoded = _in_chunks(lambda digest: _decode_one(where[digest], digest, side), contents, workers, done)
            for digest, image in zip(contents, decoded, strict=True):
                if isinstance(image, str):
                    bad[digest] = image
                    continue
                pixels = image.tobytes()
                crc = zlib.crc32(pixels, crc)
                stream.write(pixels)
                rows.append(digest)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, array_path)
        sync_folder(array_path.parent)
    except OSError as error:
        raise no_space(array_path.parent, needed, error.strerror or str(error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    index = CacheIndex(rows, bad, crc)
    try:
        write_json(index_path, index.to_json(), mode=0o600)
    except BaseException:
        array_path.unlink(missing_ok=True)
        raise
    return index


def _decode_one(path: str, digest: str, side: int) -> np.ndarray | str:
    try:
        content = read_content(path)
        if content.digest != digest:
            raise DataError("an image file changed while the cache was built", "Let the copying end, then start again.")
        return decode(content.data, side)
    except BadImageError as error:
        return error.reason


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_chunks(
    function: Callable[[T], R], items: Sequence[T], workers: int, done: Callable[[int], None]
) -> Iterator[R]:
    """Map in threads, in order; a chunk's results at most wait in memory, Ctrl-C waits for running images only."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), _CHUNK):
            results = list(pool.map(function, items[start : start + _CHUNK]))
            done(start + len(results))
            yield from results
