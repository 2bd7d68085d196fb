"""What a check may say, and what follows from all of them."""

import pytest

from client.preflight.check import Check, as_json, exit_code, failed, guarded, passed, warning, worst
from fed_diffmic.errors import DataError


def test_the_exit_code_is_of_what_must_be_mended_first():
    ok, odd = passed("a", "well"), warning("b", "odd")
    assert (worst([]), exit_code([])) == ("passed", 0)
    assert (worst([ok, odd]), exit_code([ok, odd])) == ("warning", 0)
    bad = [ok, failed("c", "machine"), odd, failed("d", "data", exit_code=3)]
    assert (worst(bad), exit_code(bad)) == ("failed", 3)


@pytest.mark.parametrize(("level", "code"), [("failed", 0), ("passed", 3), ("perhaps", 0)])
def test_level_and_code_agree(level, code):
    with pytest.raises(ValueError, match="level"):
        Check("a", level, "x", exit_code=code)


def test_what_a_check_raises_becomes_a_check_and_never_shows_a_name():
    def ours():
        yield passed("one", "first")
        raise DataError("12 images are wrong", "Mend them.")

    def disk():
        raise PermissionError(13, "Permission denied", "/data/JaneDoe.png")
        yield

    def bug():
        raise KeyError("JaneDoe")
        yield

    first, second = guarded("data", ours)
    assert (first.name, second.cause, second.exit_code) == ("one", "12 images are wrong", 3)
    others = [*guarded("disk", disk), *guarded("bug", bug)]
    assert [c.exit_code for c in others] == [6, 1]
    assert "JaneDoe" not in str(others)
    assert "Permission denied" in others[0].cause and "KeyError" in others[1].cause


def test_json():
    value = as_json([passed("a", "well", number=1), failed("b", "bad", "mend")], "north")
    assert (value["site"], value["result"], value["exit_code"]) == ("north", "failed", 6)
    assert value["checks"][0] == {
        "name": "a", "level": "passed", "cause": "well", "remedy": "", "facts": {"number": 1}, "exit_code": 0,
    }  # fmt: skip
