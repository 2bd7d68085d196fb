"""Flower's strategies behind our screening: right results, types kept, resumable, bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fed_diffmic.algorithms import SiteUpdate, Tensors, build_algorithm
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError, RoundError
from server.strategy import FlowerAlgorithm, server_algorithm

KINDS = {"count": "counter", "head.bias": "parameter", "head.weight": "parameter", "norm.mean": "buffer"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "FedAdam": {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99},
    "FedYogi": {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99},
    "FedAvgM": {"server_learning_rate": 0.7, "server_momentum": 0.9},
    "Krum": {"num_malicious_nodes": 1},
}


def config(name: str, **options: Any) -> StrategyConfig:
    return StrategyConfig(name="flower", class_path=f"flwr.serverapp.strategy.{name}", options=options)


def weights(rng: np.random.Generator) -> Tensors:
    return {
        "count": np.array(int(rng.integers(1, 9)), np.int64),
        "head.bias": rng.normal(size=()).astype(np.float32)[()] * np.ones((), np.float32),
        "head.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "norm.mean": rng.normal(size=4).astype(np.float32),
    }


def updates(seed: int, sites: int = 5) -> list[SiteUpdate]:
    rng = np.random.default_rng(seed)
    return [SiteUpdate(f"site-{n}", weights(rng), int(rng.integers(5, 50))) for n in range(sites)]


def start() -> Tensors:
    return {k: np.asarray(v) for k, v in weights(np.random.default_rng(99)).items()}


def rounds(strategy: StrategyConfig, count: int, restart: bool) -> tuple[Tensors, Tensors]:
    """``count`` rounds; with ``restart`` a new object each round, state through arrays as a checkpoint has it."""
    algorithm = server_algorithm(strategy)
    current = start()
    state = algorithm.initial_state(current, KINDS)
    for index in range(1, count + 1):
        if restart:
            algorithm = server_algorithm(strategy)
            state = {name: np.array(value) for name, value in sorted(state.items())}
        current, state = algorithm.aggregate(current, KINDS, updates(index), state, index)
    return current, state


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_keeps_names_shapes_and_types(name: str) -> None:
    result, _ = rounds(config(name, **STRATEGIES[name]), 1, restart=False)
    assert list(result) == list(KINDS)
    for key, value in start().items():
        assert result[key].dtype == value.dtype
        assert result[key].shape == value.shape
    given = updates(1)
    assert result["count"] == max(u.tensors["count"] for u in given)
    total = sum(u.num_examples for u in given)
    mean = sum(u.num_examples / total * u.tensors["norm.mean"].astype(np.float64) for u in given)
    np.testing.assert_allclose(result["norm.mean"], mean, rtol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_equals_uninterrupted(name: str) -> None:
    whole, state = rounds(config(name, **STRATEGIES[name]), 4, restart=False)
    resumed, again = rounds(config(name, **STRATEGIES[name]), 4, restart=True)
    for key, value in whole.items():
        assert resumed[key].tobytes() == value.tobytes()
    assert state.keys() == again.keys()


def test_the_state_that_makes_the_difference_is_there() -> None:
    _, adam = rounds(config("FedAdam", **STRATEGIES["FedAdam"]), 2, restart=False)
    assert {key.split("/")[0] for key in adam} == {"current_arrays", "m_t", "v_t"}
    _, momentum = rounds(config("FedAvgM", **STRATEGIES["FedAvgM"]), 2, restart=False)
    assert {key.split("/")[0] for key in momentum} == {"current_arrays", "momentum_vector"}


def test_flowers_averaging_equals_ours() -> None:
    flower, _ = rounds(config("FedAvg"), 1, restart=False)
    ours, _ = build_algorithm(StrategyConfig()).aggregate(start(), KINDS, updates(1), {}, 1)
    for key, value in ours.items():
        np.testing.assert_allclose(flower[key], value, atol=1e-6)


def test_equal_weighting_reaches_flower() -> None:
    equal = replace(config("FedAvg"), weighting="equal")
    result, _ = rounds(equal, 1, restart=False)
    mean = np.mean([u.tensors["head.weight"] for u in updates(1)], axis=0)
    np.testing.assert_allclose(result["head.weight"], mean, atol=1e-6)


def test_fedadam_is_reddis_update() -> None:
    """Reddi et al. 2020, algorithm 2, with the bias correction that Flower applies to the rate."""
    result, _ = rounds(config("FedAdam", **STRATEGIES["FedAdam"], tau=1e-3), 1, restart=False)
    given, current = updates(1), start()
    total = sum(u.num_examples for u in given)
    mean = sum(u.num_examples / total * u.tensors["head.weight"].astype(np.float64) for u in given)
    delta = mean - current["head.weight"]
    m, v = 0.1 * delta, 0.01 * delta**2
    rate = 0.01 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    np.testing.assert_allclose(
        result["head.weight"], current["head.weight"] + rate * m / (np.sqrt(v) + 1e-3), rtol=1e-5
    )


def test_krum_takes_one_sites_weights() -> None:
    given = updates(1)
    outlier = replace(given[2], tensors={**given[2].tensors, "head.weight": given[2].tensors["head.weight"] + 1000})
    result, _ = FlowerAlgorithm(config("Krum", num_malicious_nodes=1)).aggregate(
        start(), KINDS, [*given[:2], outlier, *given[3:]], {}, 1
    )
    chosen = [u.site for u in given if np.allclose(result["head.weight"], u.tensors["head.weight"])]
    assert len(chosen) == 1
    assert chosen != ["site-2"]


def test_fewer_sites_than_a_strategy_would_wait_for() -> None:
    """Flower's own sampling waits without a bound for ``min_available_nodes``; here one site is enough."""
    strategy = config("FedAvg", min_available_nodes=50, min_train_nodes=50)
    result, _ = FlowerAlgorithm(strategy).aggregate(start(), KINDS, updates(1, sites=1), {}, 1)
    np.testing.assert_allclose(result["head.weight"], updates(1, sites=1)[0].tensors["head.weight"], rtol=1e-6)


def test_a_strategy_without_a_result_fails_the_round() -> None:
    with pytest.raises(RoundError, match="returned no weights"):
        FlowerAlgorithm(config("Bulyan", num_malicious_nodes=1)).aggregate(start(), KINDS, updates(1), {}, 1)
    with pytest.raises(RoundError, match="failed to aggregate"):
        FlowerAlgorithm(config("QFedAvg", client_learning_rate=0.1)).aggregate(start(), KINDS, updates(1), {}, 1)


@pytest.mark.parametrize(
    "path",
    [None, "", "FedAvg", "flwr.serverapp.strategy.Nothing", "no.such.module.X", "json.JSONDecoder", "json.loads"],
)
def test_a_class_path_that_is_no_strategy_is_refused(path: str | None) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.class_path"):
        server_algorithm(StrategyConfig(name="flower", class_path=path))


def test_options_that_the_strategy_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.options"):
        server_algorithm(config("FedAvg", momentum=1))


def test_a_strategy_that_needs_its_own_clients_is_refused() -> None:
    with pytest.raises(ConfigError, match="proximal-mu"):
        FlowerAlgorithm(config("FedProx", proximal_mu=0.1)).aggregate(start(), KINDS, updates(1), {}, 1)


class Remembers(FlowerFedAvg):
    """Keeps something that arrays cannot hold."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.memory = {"round": server_round}
        return super().aggregate_train(server_round, replies)


class Counts(FlowerFedAvg):
    """Keeps plain numbers."""

    seen = 0

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.seen = getattr(self, "seen", 0) + 1
        self.ratio = np.float32(self.seen) / 2
        return super().aggregate_train(server_round, replies)


def test_state_that_cannot_be_saved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.strategy.load_strategy_class", lambda _: Remembers)
    with pytest.raises(ConfigError, match="its attribute memory"):
        FlowerAlgorithm(config("X")).aggregate(start(), KINDS, updates(1), {}, 1)


def test_numbers_are_state_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.strategy.load_strategy_class", lambda _: Counts)
    _, state = rounds(config("X"), 3, restart=True)
    assert state["seen/number/000000/int"] == 3
    assert state["ratio/number/000000/float32"] == 1.5
