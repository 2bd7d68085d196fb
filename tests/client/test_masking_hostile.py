"""What a coordinator that was changed can have of a site that lets updates leave under masks alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import state as state_module
from client import sureness as sureness_module
from client import tasks as tasks_module
from fed_diffmic.exchange import failures
from server import replies as replies_module
from tests import toy
from tests.client.test_masking import NAMES, codes, consortium, left, run


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_metrics_that_do_not_leave_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights under which scores break over one image alone would tell of that image by the code of the failure."""

    def breaks(*_: Any, **__: Any) -> None:
        raise FloatingPointError

    monkeypatch.setattr(tasks_module, "predict_scores", breaks)
    monkeypatch.setattr(sureness_module, "predict_doubts", breaks)
    grid, _ = consortium(tmp_path)
    _, events = run(tmp_path, grid, test_s=5.0)
    assert not events.of("site_failed") and events.of("assessed")[0]["missing"] == {}
    assert all(codes(tmp_path, name) == set() for name in NAMES)


def test_a_refusal_after_training_counts_as_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tells whether one update broke a rule; asked without end, with other weights, that would tell much of it."""
    grid, _ = consortium(tmp_path)
    told: list[Any] = []
    send = replies_module.Asking.send

    def probed(self: Any, request: Any, packed: Any = None) -> None:
        if request.payload.kind == "train" and request.site.name == "c" and not told:
            for number in range(4):
                header = {**request.payload.header}
                header["masked"] = {**header["masked"], "norm": 1000.0 + number}
                asking = replies_module.Asking(replies_module.Channel(grid, toy.Events([])), "train", self.deadline, {})
                send(asking, replace(request, payload=replace(request.payload, header=header)), packed)
                while asking.open:  # once more where the base is lacking
                    for reply in grid.pull_messages(list(asking.open)):
                        asking.take(reply)
                told.append(asking.outcome.codes.get("c"))
        send(self, request, packed)

    monkeypatch.setattr(replies_module.Asking, "send", probed)
    monkeypatch.setattr(state_module, "ATTEMPTS", 2)
    run(tmp_path, grid)
    assert told == [failures.BAD_REQUEST, failures.BAD_REQUEST, failures.REPLAY, failures.REPLAY]
    assert not left(tmp_path, "c")
