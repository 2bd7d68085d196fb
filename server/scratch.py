"""Room for arrays in files of the run's folder that have no name: nothing of them is left, however a process ends.

Their pages are the file's: the machine writes them out where memory is short. Nobody else can open them (mode 0600, and
no path), and they are gone with the last array that looks at them, also after SIGKILL and power loss.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.errors import MachineError

_ALIGNED = 64  # bytes: where a tensor begins


def scratch_array(size: int, dtype: np.dtype | type, folder: Path | None) -> np.ndarray:
    """``(size,)`` zeros.

    Args:
        folder: whose file system they lie on; none: in memory.

    Raises:
        MachineError: there is no room for them, or the folder cannot be written.
    """
    dtype = np.dtype(dtype)
    if folder is None or size == 0:
        return np.zeros(size, dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), size * dtype.itemsize)
            return np.memmap(file, dtype=dtype, mode="r+", shape=(size,))
    except OSError as error:
        raise MachineError(
            f"there is no room for a round's updates in {folder}: {error.strerror}",
            "Free space there: about two models, and one more for each site where the strategy sees single updates.",
        ) from error


def scratch_copy(tensors: Tensors, folder: Path | None) -> Tensors:
    """The same tensors in one file without a name; none: as they are.

    Raises:
        MachineError: as :func:`scratch_array`.
    """
    if folder is None:
        return tensors
    starts, size = {}, 0
    for name, value in tensors.items():
        starts[name] = size
        size += -(-value.nbytes // _ALIGNED) * _ALIGNED
    room, found = scratch_array(size, np.uint8, folder), {}
    for name, value in tensors.items():
        place = room[starts[name] : starts[name] + value.nbytes].view(value.dtype).reshape(value.shape)
        place[...] = value
        place.flags.writeable = False
        found[name] = place
    return found


def _reserve(fd: int, size: int) -> None:
    """Take the blocks now: a page that finds none later would end the process by a signal."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    zeros = bytes(2**20)
    for start in range(0, size, len(zeros)):
        os.pwrite(fd, zeros[: size - start], start)
