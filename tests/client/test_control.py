"""Pause, continue, withdraw: what the site's people decided holds for every task."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.control import FILE, PAUSE, RUNNING, WITHDRAW, decide, gate, read_control
from fed_diffmic.errors import UsageError
from fed_diffmic.exchange.failures import PAUSED, WITHDRAWN, SiteError


def test_a_pause_answers_every_task_until_it_is_over(tmp_path: Path) -> None:
    gate(tmp_path)
    decide(tmp_path, PAUSE)
    with pytest.raises(SiteError) as refused:
        gate(tmp_path)
    assert refused.value.code == PAUSED
    decide(tmp_path, RUNNING)
    gate(tmp_path)


def test_withdrawing_is_undone_only_on_purpose(tmp_path: Path) -> None:
    decide(tmp_path, WITHDRAW)
    for state in (RUNNING, PAUSE):
        with pytest.raises(UsageError, match="--rejoin"):
            decide(tmp_path, state)
    with pytest.raises(SiteError) as refused:
        gate(tmp_path)
    assert refused.value.code == WITHDRAWN
    decide(tmp_path, RUNNING, rejoin=True)
    gate(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "whatever", "since": 0}', '{"other": 1}'])
def test_a_decision_that_cannot_be_read_is_no_consent(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_control(tmp_path).state == PAUSE


def test_the_same_decision_again_keeps_its_time(tmp_path: Path) -> None:
    assert decide(tmp_path, PAUSE) == decide(tmp_path, PAUSE)
    with pytest.raises(UsageError, match=r"site\.folder"):
        decide(tmp_path / "elsewhere", PAUSE)
