"""Pseudonyms are keyed and stable; what they stand for stays in a file of its owner."""

import contextlib
import hashlib
import hmac
import stat
import threading

import pytest
from filelock import FileLock

from fed_diffmic.data.dicom import identity
from fed_diffmic.data.dicom.identity import MAPPING, Names, keep
from fed_diffmic.errors import DataError, MachineError

SECRET = b"s" * 32


def test_a_pseudonym_is_an_hmac_under_the_secret():
    expected = hmac.new(SECRET, b"fed_diffmic dicom\0patient\x004711", hashlib.sha256).hexdigest()[:32]
    assert Names(SECRET).of("patient", "4711") == f"p-{expected}"
    assert Names(b"t" * 32).of("patient", "4711") != Names(SECRET).of("patient", "4711")
    assert Names(SECRET).of("study", "4711")[2:] != expected
    assert Names(SECRET).of("patient", "") == ""
    with pytest.raises(ValueError, match="short"):
        Names(b"short")


def test_the_mapping_is_kept_and_added_to(tmp_path):
    names = Names(SECRET)
    first = names.of("patient", "4711")
    path = keep(names, tmp_path / "dicom")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = Names(SECRET)
    again.of("patient", '0815, "x"')
    keep(again, tmp_path / "dicom")
    text = path.read_text()
    assert f"patient,{first},4711" in text and '"0815, ""x"""' in text
    assert "4711" not in repr(names)


def _export(folder, site):
    names = Names(SECRET)
    for number in range(500):
        names.of("patient", f"{site}-{number}")
    keep(names, folder)


def test_two_exports_that_end_at_once_lose_nothing_of_each_other(tmp_path, monkeypatch):
    """Each waits, where it has read what is there, for the other to read it too, as long as the other can."""
    read, both = identity._read, threading.Barrier(2)

    def meeting(path):
        rows = read(path)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return rows

    monkeypatch.setattr(identity, "_read", meeting)
    exports = [threading.Thread(target=_export, args=(tmp_path / "dicom", site)) for site in "ab"]
    for one in exports:
        one.start()
    for one in exports:
        one.join()
    assert len((tmp_path / "dicom" / MAPPING).read_text().splitlines()) == 1 + 2 * 500


def test_a_mapping_that_another_export_holds_is_waited_for_and_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "LOCK_S", 0.1)
    tmp_path.chmod(0o700)
    with FileLock(f"{tmp_path / MAPPING}.lock"), pytest.raises(MachineError, match="another export"):
        keep(Names(SECRET), tmp_path)


def test_a_mapping_that_is_none_is_not_written_over(tmp_path):
    (tmp_path / MAPPING).write_text("something else\n")
    tmp_path.chmod(0o700)
    with pytest.raises(DataError, match="not a mapping"):
        keep(Names(SECRET), tmp_path)
    assert (tmp_path / MAPPING).read_text() == "something else\n"
