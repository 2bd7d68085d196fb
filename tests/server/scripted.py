"""An exchange whose one site does what the test says: weights grow by one a round, metrics are written down before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from fed_diffmic.algorithms.base import SiteUpdate
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.payload import Payload
from server.checkpoints import CheckpointStore
from server.exchange import EvaluateRequest, MetricsAnswer, Outcome, Site, TrainAnswer, TrainRequest
from server.federation import Federation
from server.hooks import Hooks
from server.observers import RoundObserver
from server.run_state import RunState
from server.terms import RunTerms
from tests import toy


class ScriptedExchange:
    """Site ``a``, which trains and judges at once.

    Args:
        scores: macro AUROC that it says of each round's candidate, by round; none: it says nothing of it.
    """

    def __init__(self, scores: Sequence[float | None]) -> None:
        self.members = {"a": Site("a", 1, (12, 6, 6))}
        self.heads: dict[str, Any] = {}
        self.hooks = Hooks()
        self.scores = scores
        self.trained: list[int] = []
        self.judged: list[EvaluateRequest] = []

    def find(self, deadline: float) -> None:
        """The site is there."""

    def everyone(self) -> set[str]:
        return {"a"}

    def train(self, request: TrainRequest) -> TrainAnswer:
        self.trained.append(request.round_index)
        grown = {name: value + value.dtype.type(1) for name, value in request.sent.items()}
        reply = Payload("train.reply", {"ledger": "head", "claim": ""}, metrics={"loss": 4.0, "steps": 3.0})
        return TrainAnswer([SiteUpdate("a", grown, 12)], {"a": ""}, Outcome({"a": reply}))

    def evaluate(self, request: EvaluateRequest) -> MetricsAnswer:
        self.judged.append(request)
        score = self.scores[request.round_index - 1]
        said = {} if score is None else {"num_examples": 6.0, "auroc_macro": score, "loss": 1.0}
        reply = Payload("evaluate.reply", {"ledger": "", "claim": ""})
        return MetricsAnswer({"a": said}, Outcome({"a": reply}))

    def assess(self, request: Any) -> MetricsAnswer:
        raise AssertionError("nobody is asked for test images")

    def refused(self, site: str, code: str, stage: str = "", round_index: int = 0) -> None:
        raise AssertionError(code)

    def check_quorum(
        self, what: str, good: set[str], missing: Mapping[str, str], asked: Set[str] | None = None
    ) -> None:
        """It is met."""


def federation(
    folder: Path,
    exchange: ScriptedExchange,
    observers: Sequence[RoundObserver] = (),
    spec: RunSpec | None = None,
    run_state: RunState | None = None,
) -> Federation:
    """A run over the scripted site, begun or as it was kept."""
    store, spec = CheckpointStore(folder), spec or toy.toy_spec(ema=0.0, rounds=len(exchange.scores))
    store.checkpoints.mkdir(parents=True, exist_ok=True)
    run_state = run_state or store.load() or RunState(settings={})
    terms, prior = RunTerms(["plain"], deadline_s=60.0), np.full(3, 1 / 3)
    return Federation(exchange, spec, run_state, store, toy.Events([]), terms, prior, observers)
