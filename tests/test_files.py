"""Durable writes: whole or not at all."""

import errno
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic import files
from fed_diffmic.errors import MachineError, ModelFileError


def test_atomic_write_replaces_and_sets_mode(tmp_path):
    path = tmp_path / "a.txt"
    files.atomic_write(path, b"one")
    files.atomic_write(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.atomic_write(path, b"one")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        files.atomic_write(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_tensors_round_trip_keeps_bits_shapes_and_dtypes(tmp_path):
    tensors = {
        "scalar": np.array(3, np.int64),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "flag": np.array([True, False]),
    }
    files.save_tensors(tmp_path / "t.safetensors", tensors)
    back = files.load_tensors(tmp_path / "t.safetensors")
    assert files.tensors_digest(back) == files.tensors_digest(tensors)
    assert back["scalar"].shape == ()
    np.testing.assert_array_equal(back["transposed"], tensors["transposed"])


def test_torn_tensors_are_noticed(tmp_path):
    path = files.save_tensors(tmp_path / "t.safetensors", {"a": np.zeros(100, np.float32)})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelFileError, match="not a readable safetensors"):
        files.load_tensors(path)


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype"])
def test_digest_sees_every_change(change):
    base = {"a": np.zeros((2, 3), np.float32)}
    other = {
        "value": {"a": np.full((2, 3), 1e-30, np.float32)},
        "name": {"b": base["a"]},
        "shape": {"a": base["a"].reshape(3, 2)},
        "dtype": {"a": np.zeros((2, 3), np.int32)},
    }[change]
    assert files.tensors_digest(other) != files.tensors_digest(base)


@given(st.text(min_size=1), st.text(min_size=1))
def test_safe_names_are_safe_and_distinct(a, b):
    for name in (a, b):
        safe = files.safe_name(name)
        assert safe not in ("", ".", "..") and "/" not in safe and len(safe) <= 64
    if a != b:
        assert files.safe_name(a) != files.safe_name(b)


def test_append_line_appends(tmp_path):
    files.append_line(tmp_path / "l", "one")
    files.append_line(tmp_path / "l", "two\n")
    assert (tmp_path / "l").read_text() == "one\ntwo\n"
