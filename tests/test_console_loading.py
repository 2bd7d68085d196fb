"""Python's search for cycles rests while libraries are loaded, and only then."""

from __future__ import annotations

import gc

import pytest

from fed_diffmic.console import while_loading


def test_the_collector_rests_inside_and_works_afterwards_also_when_loading_fails() -> None:
    with while_loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), while_loading():
        raise ImportError
    assert gc.isenabled()


def test_a_program_that_has_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with while_loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_loaded_is_set_aside_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [0]
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counts[0])
    monkeypatch.setattr(gc, "freeze", lambda: counts.__setitem__(0, counts[0] + 1))
    for _ in range(2):
        with while_loading():
            pass
    assert counts == [1]
