"""What a round is held to: its time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from server.exchange import EvaluateRequest, MetricsAnswer, TrainAnswer, TrainRequest
from server.rounds import run_stage
from tests import toy
from tests.server.scripted import ScriptedExchange, federation


@pytest.mark.parametrize(("takes", "left"), [(60.0, 12.0), (10.0, 50.0)])
def test_a_round_whose_training_took_all_its_time_is_judged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: float, left: float
) -> None:
    """As where one site says nothing until the deadline, and the others are enough."""
    toy.install_toy_networks(monkeypatch.setattr)
    clock, seen = SimpleNamespace(now=0.0), []
    clock.monotonic = lambda: clock.now
    for module in ("rounds", "terms"):
        monkeypatch.setattr(f"server.{module}.time", clock)

    class Slow(ScriptedExchange):
        def train(self, request: TrainRequest) -> TrainAnswer:
            clock.now += takes
            return super().train(request)

        def evaluate(self, request: EvaluateRequest) -> MetricsAnswer:
            seen.append(request.deadline - clock.now)
            return super().evaluate(request)

    run_stage(federation(tmp_path, Slow([0.1, 0.2])), "plain")
    assert seen == [left, left]
