"""What a coordinator that was changed can have of a site that lets updates leave under masks alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import state as state_module
from client import sureness as sureness_module
from client import tasks as tasks_module
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from server import masked as masked_module
from server import replies as replies_module
from tests import toy
from tests.client.masked import NAMES, codes, consortium, left, run


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


@pytest.mark.parametrize("norm", [1e-6, 1000.0], ids=["all of the form", "next to nothing"])
def test_whether_words_leave_room_in_a_form_for_fewer_sites_tells_nothing_of_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: float
) -> None:
    """A form for one summand leaves the sum's room to chance: with weights and norms chosen, the largest change."""
    real = masked_module.MaskedSites.written
    monkeypatch.setattr(
        masked_module.MaskedSites, "written", lambda self, request, sites, kept=None: real(self, request, 1, kept)
    )
    grid, _ = consortium(tmp_path)
    with pytest.raises(RoundError, match="0 sites gave masked updates"):
        run(tmp_path, grid, strategy=StrategyConfig(secure_aggregation="masked", masked_norm=norm))
    assert all(codes(tmp_path, name) == {failures.BAD_REQUEST} and not left(tmp_path, name) for name in NAMES)


def test_a_bound_on_steps_that_the_coordinator_chooses_is_answered_by_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal would say that a site took more steps than that; halving finds the number."""
    real = masked_module.most_of
    monkeypatch.setattr(masked_module, "most_of", lambda *given: {**real(*given), "most_moves": 1.0})
    grid, _ = consortium(tmp_path, strategies=["fednova"])
    _, events = run(tmp_path, grid, strategy=StrategyConfig(name="fednova", secure_aggregation="masked"))
    assert not events.of("site_failed")
    assert all(codes(tmp_path, name) == set() and len(left(tmp_path, name)) == 1 for name in NAMES)
