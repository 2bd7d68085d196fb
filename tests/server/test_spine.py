"""The federation over real messages in process: what its rounds come to, and in which order they do it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client import tasks
from client.module import site_algorithm
from fed_diffmic.algorithms.base import SiteUpdate, weighted_average
from fed_diffmic.files import tensors_digest
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stages import build_module, exchanged, initial_state, load_state
from fed_diffmic.training.update import LocalRound
from server.rounds import run_stage
from simulations.grid import InProcessGrid
from tests import toy
from tests.server.scripted import ScriptedExchange, federation


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_the_federation_equals_the_same_rounds_by_hand(tmp_path: Path) -> None:
    spec = toy.toy_spec(ema=0.0)
    grid, source = toy.toy_grid(tmp_path)
    final = toy.short_run(tmp_path, grid, spec)

    module = build_module(spec, "guidance")
    state, kinds = initial_state(spec, "guidance"), exchanged(build_module(spec, "guidance"))
    metrics = []
    candidates = []
    for index in (1, 2):
        updates = []
        for name in ("b", "a"):
            load_state(module.network, state)
            algorithm = site_algorithm(spec, "guidance")
            result = local_update(module, source.sites[name].train, algorithm, LocalRound(name, index))
            updates.append(SiteUpdate(name, result.tensors, result.num_examples))
        state = state | weighted_average(updates, kinds, {"a": 0.5, "b": 0.5})
        candidates.append(state)
        metrics.append(final.history[index - 1]["mean"]["auroc_macro"])
    best = candidates[int(np.argmax(metrics))]
    assert tensors_digest(final.states["guidance"]) == tensors_digest(best)
    assert final.history[-1]["best_round"] == 1 + int(np.argmax(metrics))


def test_bytes_count_tensors_both_ways_and_the_base_once(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    spec = toy.toy_spec()
    final = toy.short_run(tmp_path, grid, spec)
    state = initial_state(spec, "guidance")
    kinds = exchanged(build_module(spec, "guidance"))
    exchanged_bytes = sum(state[name].nbytes for name in kinds)
    base_bytes = sum(value.nbytes for name, value in state.items() if name not in kinds)
    assert base_bytes > 0
    train, evaluate = 2 * exchanged_bytes, exchanged_bytes
    assert [row["bytes_sent"] for row in final.history] == [2 * (train + evaluate + base_bytes), 2 * (train + evaluate)]
    # Calibrated with the weights of the last round, which the sites were sent to judge: nothing crosses for that.
    assert final.bytes_sent == 2 * (2 * (train + evaluate) + base_bytes)


def test_a_site_that_lost_its_base_is_sent_it_again(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    whole = toy.short_run(tmp_path / "whole", grid)
    grid, _ = toy.toy_grid(tmp_path / "again")

    class Forgetful(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            for file in (tmp_path / "again" / "sites" / "a" / "bases").glob("*"):
                file.unlink()
            return super().push_messages(messages)

    grid.__class__ = Forgetful
    final = toy.short_run(tmp_path / "run", grid)
    assert final.digests == whole.digests
    assert final.bytes_sent > whole.bytes_sent


def test_average_and_best_round_are_what_the_history_says(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    final = toy.short_run(tmp_path, grid, toy.toy_spec(ema=0.5, rounds=4))
    scores = [row["mean"]["auroc_macro"] for row in final.history]
    assert final.history[-1]["best_round"] == 1 + int(np.argmax(scores))
    by_loss_grid, _ = toy.toy_grid(tmp_path / "loss")
    by_loss = toy.short_run(tmp_path / "loss", by_loss_grid, toy.toy_spec(ema=0.5, rounds=4, select="loss"))
    losses = [row["mean"]["loss"] for row in by_loss.history]
    assert by_loss.history[-1]["best_round"] == 1 + int(np.argmin(losses))


def test_a_kept_update_answers_the_same_request_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = toy.toy_grid(tmp_path / "whole")
    whole = toy.short_run(tmp_path / "whole", grid)
    grid, _ = toy.toy_grid(tmp_path)
    calls: list[int] = []
    honest = tasks.local_update
    monkeypatch.setattr(tasks, "local_update", lambda *a, **k: calls.append(1) or honest(*a, **k))

    class Crash(toy.Events):
        def emit(self, kind: str, **facts: Any) -> None:
            if kind == "site_evaluated" and facts["round"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.short_run(tmp_path, grid, events=Crash([]))
    assert len(calls) == 4  # both sites, both rounds; the second round reached no checkpoint
    assert toy.short_run(tmp_path, grid).digests == whole.digests
    assert len(calls) == 4


def test_the_average_is_judged_and_of_the_best_round_it_is_what_stays(tmp_path: Path) -> None:
    """Weights that grow by one a round, and scripted metrics: which tensors are asked about, and which are kept."""
    exchange = ScriptedExchange([0.5, 0.9, 0.7])
    run = federation(tmp_path, exchange, spec=toy.toy_spec(ema=0.5, rounds=3))
    begun = initial_state(run.spec, "plain")["head.weight"]
    run_stage(run, "plain")
    for asked, grown in zip(exchange.judged, (1.0, 1.5, 2.25), strict=True):
        weights = asked.tensors["head.weight"]
        np.testing.assert_allclose(weights, begun + grown, rtol=1e-5, err_msg=str(asked.round_index))
        assert asked.site_states == {}
    np.testing.assert_allclose(run.run_state.results["plain"]["head.weight"], begun + 1.5, rtol=1e-5)
    rows = run.run_state.history
    assert [row["round"] for row in rows] == [1, 2, 3] == [asked.round_index for asked in exchange.judged]
    assert [row["best_round"] for row in rows] == [1, 2, 2]
    assert {row["loss"] for row in rows} == {4.0}, "the training loss, not the validation loss"
    assert rows[0]["mean"]["loss"] == 1.0 and run.run_state.ledgers == {"a": "head"}
