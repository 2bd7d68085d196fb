"""Pseudonyms are keyed and stable; what they stand for stays in a file of its owner."""

import hashlib
import hmac
import stat

import pytest

from fed_diffmic.data.dicom.identity import MAPPING, Names, keep
from fed_diffmic.errors import DataError

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


def test_a_mapping_that_is_none_is_not_written_over(tmp_path):
    (tmp_path / MAPPING).write_text("something else\n")
    tmp_path.chmod(0o700)
    with pytest.raises(DataError, match="not a mapping"):
        keep(Names(SECRET), tmp_path)
    assert (tmp_path / MAPPING).read_text() == "something else\n"
