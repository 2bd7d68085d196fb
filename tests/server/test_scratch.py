"""Arrays in files without a name: nobody finds them, nothing of them is left, and a full disk is said."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.errors import MachineError
from server.scratch import scratch_array, scratch_copy


def test_it_lies_in_a_file_that_has_no_name_and_is_its_owners_alone(tmp_path: Path) -> None:
    room = scratch_array(5000, np.float64, tmp_path)
    assert room.shape == (5000,) and not room.any()
    room[:] = np.arange(5000)
    assert list(tmp_path.iterdir()) == []
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert mapped and all(line.endswith("(deleted)") for line in mapped)
    if os.geteuid() == 0:  # who else may follow such a link
        number = "-".join(part.lstrip("0") for part in mapped[0].split()[0].split("-"))
        assert stat.S_IMODE(os.stat(f"/proc/self/map_files/{number}").st_mode) == 0o600
    del room
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]


def test_tensors_of_every_type_come_back_as_they_were(tmp_path: Path) -> None:
    given = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.array(7, np.int64),
        "flag": np.array([True, False, True]),
        "empty": np.zeros((0, 4), np.float32),
        "half": np.arange(3, dtype=np.float16),
    }
    found = scratch_copy(given, tmp_path)
    for name, value in given.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes() and not found[name].flags.writeable
    assert scratch_copy(given, None) is given


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MachineError, match=r"no room for a round's updates in .*: No space left"):
        scratch_array(10, np.uint8, tmp_path)
    with pytest.raises(MachineError, match="no room"):
        scratch_array(10, np.uint8, tmp_path / "gone")


def test_where_blocks_cannot_be_reserved_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    room = scratch_array(2**19 + 3, np.float32, tmp_path)
    room[-1] = 1.0
    assert room.shape == (2**19 + 3,) and room.sum() == 1.0
