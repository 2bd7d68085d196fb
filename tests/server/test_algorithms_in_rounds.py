"""Algorithms inside the real round loop: what crosses, what stays at a site, who takes part, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import tasks
from client.site import Site
from client.state import SiteStore
from fed_diffmic.algorithms import algorithm_names
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import tensors_digest
from fed_diffmic.release.final import FinalModel
from fed_diffmic.training.stages import initial_state
from server import stage as stage_module
from server.checkpoints import CheckpointStore
from tests import toy

NORM = ("norm.bias", "norm.num_batches_tracked", "norm.running_mean", "norm.running_var", "norm.weight")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)


def federation(
    folder: Path, strategy: StrategyConfig, names: tuple[str, ...] = ("a", "b"), quorum: float = 1.0, **stage: Any
) -> tuple[FinalModel, toy.Events, RunSpec]:
    grid, _ = toy.toy_grid(folder, names)
    spec, events = toy.toy_spec(strategy=strategy, **stage), toy.Events([])
    store = CheckpointStore(folder / "run")
    final = toy.federate(grid, spec, store, events, stages=["guidance"], sites=list(names), quorum=quorum)
    return final, events, spec


def options(name: str) -> StrategyConfig:
    return StrategyConfig(name=name, trim=0.34, server_lr=0.1 if name in ("fedadam", "fedyogi") else 1.0)


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_trains_and_repeats_itself_bit_for_bit(name: str, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    first, events, spec = federation(tmp_path / "1", options(name), names)
    again, _, _ = federation(tmp_path / "2", options(name), names)
    assert first.digests == again.digests
    start = initial_state(spec, "guidance")
    moved = float(np.abs(first.states["guidance"]["head.weight"] - start["head.weight"]).max())
    assert 1e-4 < moved < 10
    assert not events.of("site_refused")


def test_fedbn_lets_no_normalisation_cross_in_either_direction(tmp_path: Path, monkeypatch: Any) -> None:
    crossed: list[str] = []
    load = tasks.load_module

    def spy(spec: RunSpec, stage: str, store: SiteStore, request: Payload, *rest: Any, **more: Any) -> Any:
        crossed.extend(n for n in request.tensors if not n.startswith("base/"))
        return load(spec, stage, store, request, *rest, **more)

    monkeypatch.setattr(tasks, "load_module", spy)
    final, _, spec = federation(tmp_path, StrategyConfig(name="fedbn"), rounds=3)
    assert set(crossed) == {"head.bias", "head.weight"}
    start = initial_state(spec, "guidance")
    assert all(np.array_equal(final.states["guidance"][n], start[n]) for n in NORM)  # what nobody trained
    own = {}
    for site, digest in final.personal["guidance"].items():
        state = SiteStore(tmp_path / "sites" / site).site_state(("toy", "federated", "guidance"), digest)
        assert state is not None
        own[site] = {n.removeprefix("algorithm/kept."): v for n, v in state.items()}
        assert sorted(own[site]) == sorted(NORM)
        assert not np.array_equal(own[site]["norm.running_mean"], start["norm.running_mean"])
    assert not np.array_equal(own["a"]["norm.running_mean"], own["b"]["norm.running_mean"])


@pytest.mark.parametrize("name", ["fedbn", "ditto"])
def test_the_state_of_the_best_round_is_kept_and_evaluated(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """The best round is the second of five; its state must outlive three more rounds."""
    scores = iter([[2.0, 0.1], [2.0, 0.9], [2.0, 0.2], [2.0, 0.3], [2.0, 0.4]])
    monkeypatch.setattr(stage_module, "selection_score", lambda *_, **__: next(scores))
    final, _, _ = federation(tmp_path, StrategyConfig(name=name), rounds=5)
    assert final.history[-1]["best_round"] == 2
    for site, digest in final.personal["guidance"].items():
        store = SiteStore(tmp_path / "sites" / site)
        assert store.site_state(("toy", "federated", "guidance"), digest) is not None
        kept = list((tmp_path / "sites" / site / "states").rglob("*.safetensors"))
        assert sorted(int(p.name[:6]) for p in kept) == [2, 4, 5]  # the best, the last and what it was built on


def test_scaffold_sends_its_control_both_ways_under_the_same_names(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    update = tasks.update

    def spy(site: Site, spec: RunSpec, header: Any, module: Any, algorithm: Any, before: Any, received: Any) -> Any:
        result = update(site, spec, header, module, algorithm, before, received)
        seen.append((set(received), set(result[0].algorithm_tensors)))
        return result

    monkeypatch.setattr(tasks, "update", spy)
    final, _, _ = federation(tmp_path, StrategyConfig(name="scaffold"))
    names = {f"algorithm/control.{n}" for n in ("norm.bias", "norm.weight", "head.bias", "head.weight")}
    assert len(seen) == 4 and all(received == sent == names for received, sent in seen)
    plain, _, _ = federation(tmp_path / "plain", StrategyConfig())
    assert final.bytes_sent > plain.bytes_sent


def test_an_extra_that_is_not_the_algorithms_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    update = tasks.update

    def spy(site: Site, *rest: Any) -> Any:
        result, ledger, claim = update(site, *rest)
        if site.name == "b":
            result.algorithm_tensors["algorithm/control.more"] = np.zeros(3, np.float32)
        return result, ledger, claim

    monkeypatch.setattr(tasks, "update", spy)
    with pytest.raises(RoundError, match="b: the reply is not a payload"):
        federation(tmp_path, StrategyConfig(name="scaffold"))


def test_participation_asks_the_drawn_sites_only_and_the_draw_repeats(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    strategy = StrategyConfig(name="scaffold", participation=0.5)
    final, _, _ = federation(tmp_path / "1", strategy, names, rounds=4)
    again, _, _ = federation(tmp_path / "2", strategy, names, rounds=4)
    drawn = [sorted(row["sites"]) for row in final.history]
    assert all(len(sites) == 2 for sites in drawn) and len({tuple(sites) for sites in drawn}) > 1
    assert drawn == [sorted(row["sites"]) for row in again.history] and final.digests == again.digests
    assert all(sorted(row["val"]) == list(names) for row in final.history)  # all are asked for metrics
    assert not any(row["missing"] for row in final.history)


def test_a_site_cannot_claim_more_steps_than_its_images_give(tmp_path: Path, monkeypatch: Any) -> None:
    update = tasks.update

    def spy(site: Site, *rest: Any) -> Any:
        result, ledger, claim = update(site, *rest)
        if site.name == "b":
            result.metrics["steps"] = 1e6
        return result, ledger, claim

    monkeypatch.setattr(tasks, "update", spy)
    final, _, _ = federation(tmp_path / "mean", StrategyConfig())  # nothing depends on it
    assert tensors_digest(final.states["guidance"])
    with pytest.raises(RoundError, match="b: a figure is not one agreed or lies outside its range"):
        federation(tmp_path / "nova", StrategyConfig(name="fednova"))
