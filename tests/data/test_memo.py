"""Digests that are remembered: of the very content, as long as nothing says that it changed, and no longer."""

import hashlib
import os
import time

import pytest

from fed_diffmic.data import memo as module
from fed_diffmic.data.memo import DigestMemo


@pytest.fixture
def file(tmp_path):
    """A file that was last changed a minute ago, as far as its change time can be said to be."""
    path = tmp_path / "x.png"
    path.write_bytes(b"first")
    return path


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    """Files count as settled at once: a test cannot set their change time."""
    monkeypatch.setattr(module, "_SETTLED_S", -1.0)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def remembered(tmp_path, monkeypatch, path):
    """What a second run says of a file, and whether it read it."""
    read = []
    real = module.read_content
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_content", lambda p: read.append(p) or real(p))
        return DigestMemo(tmp_path / "memo").digest_of(str(path)), bool(read)


def keep(tmp_path, path):
    memo = DigestMemo(tmp_path / "memo")
    assert memo.digest_of(str(path)) == (digest(path.read_bytes()), "")
    memo.save()


def test_a_file_that_did_not_change_is_not_read_again(tmp_path, monkeypatch, file):
    keep(tmp_path, file)
    assert remembered(tmp_path, monkeypatch, file) == ((digest(b"first"), ""), False)
    assert (tmp_path / "memo").stat().st_mode & 0o777 == 0o600
    assert b"x.png" not in (tmp_path / "memo").read_bytes()


def test_another_content_of_the_same_size_is_read(tmp_path, monkeypatch, file):
    """Whichever of the two times tells it: an editor moves both, a copy that keeps times moves the change time."""
    keep(tmp_path, file)
    stat = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as cp -p and rsync -t leave it
    assert file.stat().st_size == stat.st_size and file.stat().st_mtime_ns == stat.st_mtime_ns
    assert remembered(tmp_path, monkeypatch, file) == ((digest(b"other"), ""), True)


@pytest.mark.parametrize("changed", ["st_size", "st_mtime_ns", "st_ctime_ns", "path"])
def test_size_both_times_and_the_path_are_what_a_file_is_known_by(tmp_path, file, changed):
    memo, stat = DigestMemo(tmp_path / "memo"), file.stat()

    class Changed:
        def __getattr__(self, name):
            return getattr(stat, name) + (name == changed)

    other = f"{file}.other" if changed == "path" else str(file)
    assert memo._name(other, Changed()) != memo._name(str(file), stat)


def test_a_file_that_was_changed_just_now_is_not_remembered(tmp_path, monkeypatch, file):
    monkeypatch.setattr(module, "_SETTLED_S", 2.0)
    keep(tmp_path, file)
    assert remembered(tmp_path, monkeypatch, file) == ((digest(b"first"), ""), True)
    os.utime(file, (time.time() - 60, time.time() - 60))  # the change time says that it was just now
    keep(tmp_path, file)
    assert remembered(tmp_path, monkeypatch, file) == ((digest(b"first"), ""), True)


def test_what_cannot_be_read_any_more_is_said_and_a_torn_memo_is_empty(tmp_path, monkeypatch, file):
    keep(tmp_path, file)
    whole = (tmp_path / "memo").read_bytes()
    for torn in (whole[:-1], whole[:40], b"", whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]):
        (tmp_path / "memo").write_bytes(torn)
        assert remembered(tmp_path, monkeypatch, file) == ((digest(b"first"), ""), True)
    (tmp_path / "memo").write_bytes(whole)
    file.unlink()
    assert remembered(tmp_path, monkeypatch, file) == (("", "missing"), True)


def test_entries_of_earlier_runs_stay(tmp_path, monkeypatch, file):
    keep(tmp_path, file)
    second = tmp_path / "y.png"
    second.write_bytes(b"another")
    keep(tmp_path, second)
    assert remembered(tmp_path, monkeypatch, file) == ((digest(b"first"), ""), False)
    assert remembered(tmp_path, monkeypatch, second) == ((digest(b"another"), ""), False)
