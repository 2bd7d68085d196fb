"""What watches the rounds: told after the checkpoint, in order; early stopping ends at the same round after a kill."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.server import ServerConfig, ServerRunConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ModelFileError
from server.checkpoints import CheckpointStore
from server.observers import Patience, RoundEvents, RoundObserver, Stop, told
from server.rounds import run_stage
from server.run_state import StageProgress
from server.start import as_simulation
from tests import toy
from tests.server.scripted import ScriptedExchange, federation


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


class Seen(RoundObserver):
    """Writes down what it is told, and what the checkpoint holds then."""

    def __init__(self, name: str, folder: Path, seen: list[Any], stops: int = 0) -> None:
        self.name, self.folder, self.seen, self.stops = name, folder, seen, stops

    def after_round(self, facts: Any, progress: StageProgress) -> Stop | None:
        kept = CheckpointStore(self.folder).load()
        assert kept is not None and kept.progress is not None
        self.seen.append((self.name, facts["round"], kept.progress.round, len(kept.history)))
        return Stop(self.name) if facts["round"] == self.stops else None


def test_every_observer_is_told_in_order_after_the_checkpoint_and_the_first_to_stop_is_believed(tmp_path: Path) -> None:
    seen: list[Any] = []
    watchers = [Seen("a", tmp_path, seen), Seen("b", tmp_path, seen, stops=2), Seen("c", tmp_path, seen, stops=2)]
    run = federation(tmp_path, ScriptedExchange([0.1, 0.2, 0.3]), watchers)
    run_stage(run, "plain")
    assert seen == [(name, index, index, index) for index in (1, 2) for name in "abc"]
    (stopped,) = run.events.of("stage_stopped")  # type: ignore[attr-defined]
    assert (stopped["round"], stopped["rounds"], stopped["reason"]) == (2, 3, "b")
    assert run.run_state.progress is None and list(run.run_state.results) == ["plain"]


def test_a_stop_in_the_last_round_is_no_early_one(tmp_path: Path) -> None:
    run = federation(tmp_path, ScriptedExchange([0.1, 0.2]), [Seen("a", tmp_path, [], stops=2)])
    run_stage(run, "plain")
    assert run.events.kinds()[-1] == "stage_done" and not run.events.of("stage_stopped")  # type: ignore[attr-defined]


def test_the_events_of_a_round_are_an_observer(tmp_path: Path) -> None:
    run = federation(tmp_path, ScriptedExchange([0.5]))
    observer = RoundEvents(run.events, run.spec)
    run_stage(federation(tmp_path, ScriptedExchange([0.5]), [observer]), "plain")
    (done,) = run.events.of("round_done")  # type: ignore[attr-defined]
    assert (done["arm"], done["stage"], done["round"], done["rounds"]) == ("federated", "plain", 1, 1)
    assert done["figures"] == done["mean"] == {"loss": 1.0, "auroc_macro": 0.5}


# ---- early stopping ------------------------------------------------------------------------------
def rounds_of(folder: Path, scores: Sequence[float | None], patience: int, killed_after: int = 0) -> tuple[Any, ...]:
    """A stage with that patience: rounds trained, rounds kept, the best one; killed once before Patience is told."""

    class Killed(RoundObserver):
        def after_round(self, facts: Any, progress: StageProgress) -> Stop | None:
            if facts["round"] == killed_after:
                raise KeyboardInterrupt
            return None

    trained: list[int] = []
    for watchers in [[Killed()], []] if killed_after else [[]]:
        exchange = ScriptedExchange(scores)
        run = federation(folder, exchange)
        if "plain" not in run.run_state.results:
            made = [*watchers, Patience(patience, run.run_state.history)]
            run = federation(folder, exchange, made, run_state=run.run_state)
            with contextlib.suppress(KeyboardInterrupt):
                run_stage(run, "plain")
        trained += exchange.trained
    history = run.run_state.history
    return trained, [row["round"] for row in history], history[-1]["best_round"]


@pytest.mark.parametrize(
    ("scores", "patience", "rounds", "best"),
    [
        ([0.5, 0.4, 0.6, 0.6, 0.5, 0.9], 2, 5, 3),  # an equal round is no better one
        ([0.5, 0.4, 0.4, 0.9, 0.8, 0.7], 3, 6, 4),  # two without gain, then a better one: counted anew
        ([0.5, 0.4, 0.9], 1, 2, 1),
        ([0.1, 0.2, 0.3], 1, 3, 3),
        ([None, None, None, None], 1, 4, 4),  # nobody says how good a round is: nothing is read, nothing stops
    ],
)
def test_a_stage_ends_when_patience_is_over(
    tmp_path: Path, scores: list[float | None], patience: int, rounds: int, best: int
) -> None:
    assert rounds_of(tmp_path, scores, patience) == (list(range(1, rounds + 1)), list(range(1, rounds + 1)), best)


def counted(scores: Sequence[float], patience: int) -> int:
    """Goodfellow, Bengio and Courville 2016, algorithm 7.1, as it is printed: rounds until it ends."""
    best, failures, done = -1.0, 0, 0
    while failures < patience and done < len(scores):
        score = scores[done]
        best, failures = (score, 0) if score > best else (best, failures + 1)
        done += 1
    return done


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4))
def test_patience_counted_from_the_history_is_that_of_the_published_algorithm(scores: list[int], patience: int) -> None:
    history: list[dict[str, Any]] = []
    progress, observer, best = StageProgress("plain", {}, {}), Patience(patience, history), -1
    for progress.round, score in enumerate(scores, start=1):
        if score > best:
            best, progress.best_round = score, progress.round
        history.append({"stage": "plain", "round": progress.round, "mean": {"auroc_macro": score}})
        if told([observer], history[-1], progress) is not None:
            break
    assert progress.round == counted(scores, patience)


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4, 5])
def test_a_run_that_was_killed_ends_at_the_same_round(tmp_path: Path, killed_after: int) -> None:
    scores = [0.5, 0.4, 0.6, 0.6, 0.5, 0.9]
    assert rounds_of(tmp_path, scores, 2, killed_after) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], 3)


def test_a_round_of_which_nobody_says_anything_counts_neither_way() -> None:
    rows = [{"stage": "plain", "round": r, "mean": {"loss": 1.0} if r != 2 else {}} for r in (1, 2, 3)]
    progress = StageProgress("plain", {}, {}, round=3, best_round=1)
    assert Patience(2, rows).resumed(progress) is None and Patience(1, rows).resumed(progress) is not None


def test_another_stages_rounds_do_not_count() -> None:
    history = [{"stage": "guidance", "round": r, "mean": {"loss": 1.0}} for r in (1, 2, 3, 4)]
    progress = StageProgress("diffusion", {}, {}, round=1, best_round=1)
    assert Patience(1, history).resumed(progress) is None


def test_patience_is_part_of_what_must_be_the_same(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    toy.short_run(tmp_path, grid, patience=2)
    with pytest.raises(ModelFileError, match="patience"):
        toy.short_run(tmp_path, grid, patience=3)
    toy.short_run(tmp_path / "none", grid)
    kept = CheckpointStore(tmp_path / "none").load()
    assert kept is not None and "patience" not in kept.settings, "runs from before there was any go on"


def test_a_run_with_patience_has_fewer_rounds_and_the_same_best_one(tmp_path: Path) -> None:
    spec = toy.toy_spec(ema=0.0, rounds=6, lr=0.5)
    grid, _ = toy.toy_grid(tmp_path / "whole")
    whole = toy.short_run(tmp_path / "whole", grid, spec)
    scores = [row["mean"]["auroc_macro"] for row in whole.history]
    wanted = counted(scores, 1)
    assert wanted < 6, scores
    grid, _ = toy.toy_grid(tmp_path)
    events = toy.Events([])
    early = toy.short_run(tmp_path, grid, spec, events, patience=1)
    assert [row["mean"] for row in early.history] == [row["mean"] for row in whole.history[:wanted]]
    assert [event["round"] for event in events.of("stage_stopped")] == [wanted]
    assert early.history[-1]["best_round"] == 1 + scores.index(max(scores[:wanted]))


def test_a_coordinators_patience_reaches_the_rounds() -> None:
    assert as_simulation(ServerConfig(run=ServerRunConfig(patience=7))).run.patience == 7
    assert as_simulation(ServerConfig(strategy=StrategyConfig())).run.patience == 0
