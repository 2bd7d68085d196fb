"""Writing files that matter: temporary name, flush, fsync, rename; append-only lines; tensors.

Every durable write of the project goes through this module, so that a crash at any moment leaves
either the old file or the new one, never a torn one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as _load_tensors
from safetensors.numpy import save as _save_tensors

from fed_diffmic.errors import MachineError, ModelFileError

_READ = "Check the path; a file that was there is put back from a copy."
_MAPPED = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip
_CODES = {np.dtype(kind).name: code for code, kind in _MAPPED.items()}
_ORDER = ("I64", "F64", "F32", "I32", "F16", "I16", "I8", "U8", "BOOL")
"""Of types in a file, as the library lays them out: none begins where it would not be aligned."""


Piece = bytes | memoryview


def safe_name(name: str) -> str:
    """A folder name for a site or an arm: itself where harmless, else cleaned with a short digest."""
    clean = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"
    if clean == name and len(clean) <= 64:
        return clean
    return f"{clean[:48]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: str | os.PathLike[str], data: bytes | Sequence[Piece], mode: int = 0o644) -> Path:
    """Write ``data`` under a temporary name in the same folder, flush it to disk, rename it.

    A link is followed: what it points to is written, and the link stays. What is no file (a terminal, a pipe,
    ``/dev/null``) is written into, never replaced.

    Args:
        data: whole, or its pieces in their order.

    Raises:
        MachineError: no space, no permission, no such folder, or the path is a folder.
    """
    path, pieces = Path(path), [data] if isinstance(data, bytes) else data
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb", buffering=0) as stream:
                for piece in pieces:
                    _write_all(stream.fileno(), piece)
            return path
        if path.is_symlink():  # after the above: /dev/stdout is a link whose target has no name
            path = Path(os.path.realpath(path))
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.writelines(pieces)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise MachineError(
            f"cannot write {path.name} in {path.parent}: {error.strerror}",
            "Free space or choose a folder you may write to.",
        ) from error
    return path


def _write_all(fd: int, data: Piece) -> None:
    """Write everything, however little a pipe takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def is_output(target: str | os.PathLike[str]) -> bool:
    """Whether a name means this process's standard output: ``-``, ``/dev/stdout``, or the file that it is led into."""
    if str(target) == "-":
        return True
    try:
        return os.path.samestat(os.stat(target), os.fstat(1))
    except OSError:
        return False


def write_out(target: str | os.PathLike[str], data: bytes, mode: int = 0o644) -> None:
    """Write a result where a user asked for it: UTF-8 text to standard output (:func:`is_output`), else a file.

    Raises:
        MachineError: as :func:`atomic_write`.
    """
    if not is_output(target):
        atomic_write(target, data, mode)
        return
    sys.stdout.write(data.decode())
    sys.stdout.flush()


def write_new(path: str | os.PathLike[str], data: bytes, mode: int = 0o600) -> Path:
    """As :func:`atomic_write`, but never over a file that is there, not even one that appears meanwhile.

    Raises:
        FileExistsError: something of that name exists; it is left as it is.
        MachineError: as :func:`atomic_write`.
    """
    path = Path(path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # the name is ours from here on
    except FileExistsError:
        raise
    except OSError as error:
        raise MachineError(
            f"cannot write {path.name} in {path.parent}: {error.strerror}",
            "Free space or choose a folder you may write to.",
        ) from error
    try:
        return atomic_write(path, data, mode)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_all_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Write several new files (contents and mode), all or none; see :func:`write_new`.

    Raises:
        FileExistsError: one of the names is taken (``filename`` says which); nothing is written.
        MachineError: as :func:`atomic_write`; what was written is removed.
    """
    for path in files:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    written: list[Path] = []
    try:
        for path, (data, mode) in files.items():
            written.append(write_new(path, data, mode))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def hold(file: int, refused: Exception) -> None:
    """Lock an open file or folder until it is closed, without waiting.

    Args:
        file: its descriptor.
        refused: raised where another process holds it.

    Raises:
        OSError: it cannot be locked: some file systems of a network lock nothing.
    """
    import fcntl  # only where something is locked: the rest of this module knows no kind of machine

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise refused from None


def private_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for what only its owner may read (0700); one that is there must not be writable by others.

    Raises:
        MachineError: it cannot be made, is no folder, or others may write to it.
    """
    path = Path(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except OSError as error:
        raise MachineError(
            f"cannot make the folder {path}: {error.strerror}", "Choose a folder that you may write to."
        ) from error
    if mode & 0o022:
        raise MachineError(
            f"others may write to the folder {path} (mode {mode & 0o777:03o}): they could exchange what lies in it",
            f"Run `chmod 700 {shlex.quote(str(path))}`, or choose another folder.",
        )
    return path


def write_json(path: str | os.PathLike[str], value: Any, mode: int = 0o644, indent: int | None = 2) -> Path:
    """Write ``value`` as readable JSON (NaN refused: JSON has none), atomically; ``indent=None``: on one line, fast."""
    return atomic_write(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode(), mode)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that this project wrote.

    Raises:
        ModelFileError: missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}", _READ) from error


def append_line(path: str | os.PathLike[str], line: str, mode: int = 0o644) -> None:
    """Append one line and flush it to disk (append-only logs)."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        data = line.rstrip("\n").encode() + b"\n"
        if os.write(fd, data) != len(data):  # a full disk may take a part of it without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    finally:
        os.close(fd)


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    mode: int = 0o644,
) -> Path:
    """Write named arrays as safetensors, atomically; scalars keep their shape ``()``.

    Nothing is copied: what the file holds is written tensor by tensor, in the library's own layout.
    """
    return atomic_write(path, _pieces(tensors, dict(metadata or {})), mode)


def _pieces(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list[Piece]:
    """A safetensors file in pieces: its head, then each tensor's bytes where they are."""
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    codes = {name: _CODES.get(value.dtype.name, "") for name, value in arrays.items()}
    if not all(codes.values()) or any(value.dtype.byteorder == ">" for value in arrays.values()):
        return [_save_tensors(arrays, dict(metadata) or None)]
    head: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    names, end = sorted(arrays, key=lambda name: (_ORDER.index(codes[name]), name)), 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        head[name] = {"dtype": codes[name], "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *(arrays[name].reshape(-1).view(np.uint8).data for name in names)]


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a safetensors file into writable arrays.

    Raises:
        ModelFileError: missing, torn or not safetensors.
    """
    try:
        return dict(sorted(_load_tensors(Path(path).read_bytes()).items()))
    except Exception as error:  # safetensors raises its own type, with the position of the fault
        raise ModelFileError(f"{path} is not a readable safetensors file: {error}", _READ) from error


def map_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file that this process wrote, read where they are used; they take no memory.

    What is written into one stays in this process. The file may be removed meanwhile, but must not be written into.

    Raises:
        ModelFileError: missing, torn or not safetensors.
    """
    try:
        size = Path(path).stat().st_size
        whole = np.memmap(path, np.uint8, "c")
        start = 8 + int(whole[:8].view("<u8")[0])
        if start > size:
            raise ValueError("its head is longer than the file")
        found = {}
        for name, facts in json.loads(bytes(whole[8:start])).items():
            if name != "__metadata__":
                begin, end = facts["data_offsets"]
                found[name] = whole[start + begin : start + end].view(_MAPPED[facts["dtype"]]).reshape(facts["shape"])
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path} is not a readable safetensors file: {error}", _READ) from error


def tensors_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and bytes: the name of a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.asarray(tensors[name], order="C")
        digest.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
