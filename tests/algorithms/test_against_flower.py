"""Our averages against Flower's own strategies, over several rounds, on drawn tensors.

FedAvgM, the median, the trimmed mean and Krum are in ``test_on_quadratics.py``. FedAdam and FedYogi differ in what the
paper (Reddi et al. 2021, Algorithm 2) leaves open or says otherwise: ours begin the second moment at ``tau`` squared,
Flower's at nought, and Flower's FedAdam corrects bias. Here each difference is taken away and the rest is equal.
"""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import qfedavg

from fed_diffmic.algorithms import Algorithm, SiteUpdate, build_algorithm
from fed_diffmic.config.simulation import StrategyConfig
from server.strategy import FlowerAlgorithm
from tests.algorithms.quadratics import KINDS


def drawn(rng: np.random.Generator, current: dict[str, np.ndarray], losses: bool = False) -> list[SiteUpdate]:
    """Five sites with unlike numbers of images."""
    return [
        SiteUpdate(
            name,
            {"weight": (current["weight"] + rng.normal(size=(4, 3))).astype(np.float32)},
            int(rng.integers(5, 90)),
            initial_loss=float(rng.uniform(0.2, 3)) if losses else None,
        )
        for name in "abcde"
    ]


def test_an_average_weighted_by_images_is_flowers() -> None:
    rng = np.random.default_rng(3)
    mine = build_algorithm(StrategyConfig(name="fedavg", weighting="examples"))
    flower = "flwr.serverapp.strategy.FedAvg"
    other = FlowerAlgorithm(StrategyConfig(name="flower", class_path=flower, weighting="examples"))
    current = again = {"weight": rng.normal(size=(4, 3)).astype(np.float32)}
    for index in (1, 2, 3):
        updates = drawn(rng, current)
        current, _ = mine.aggregate(current, KINDS, updates, {}, index, 5)
        again, _ = other.aggregate(again, KINDS, updates, {}, index)
        np.testing.assert_allclose(current["weight"], again["weight"], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_a_fair_step_is_flowers(q: float) -> None:
    rng = np.random.default_rng(7)
    mine = build_algorithm(StrategyConfig(name="qfedavg", q=q, lipschitz_lr=0.3, weighting="equal"))
    current = {"weight": rng.normal(size=(4, 3)).astype(np.float32)}
    for index in (1, 2, 3):
        updates = drawn(rng, current, losses=True)
        parts = [
            qfedavg.compute_delta_and_h(
                [current["weight"].astype(np.float64)],
                [update.tensors["weight"].astype(np.float64)],
                q,
                1 / 0.3,
                float(update.initial_loss or 0),
            )
            for update in updates
        ]
        expected = current["weight"] - sum(delta[0] for delta, _ in parts) / sum(h for _, h in parts)
        current, _ = mine.aggregate(current, KINDS, updates, {}, index, 5)
        np.testing.assert_allclose(current["weight"], expected, rtol=2e-6, atol=1e-6)


# --- FedAdam and FedYogi ------------------------------------------------------------------------------------------
ETA, BETA1, BETA2, TAU = 0.1, 0.8, 0.95, 0.05
ADAPTIVE = {"fedadam": "FedAdam", "fedyogi": "FedYogi"}
NOUGHT = {"m/weight": np.zeros((4, 3)), "v/weight": np.zeros((4, 3))}


def ours(name: str, rate: float = ETA) -> Algorithm:
    options = {"server_lr": rate, "server_momentum": BETA1, "server_beta2": BETA2, "server_tau": TAU}
    return build_algorithm(StrategyConfig(name=name, weighting="equal", **options))


def flowers(name: str) -> FlowerAlgorithm:
    options = {"eta": ETA, "beta_1": BETA1, "beta_2": BETA2, "tau": TAU}
    path = f"flwr.serverapp.strategy.{ADAPTIVE[name]}"
    return FlowerAlgorithm(StrategyConfig(name="flower", class_path=path, options=options, weighting="equal"))


def corrected(name: str, index: int) -> float:
    """Flower's FedAdam has its rate times ``sqrt(1 - b2^(t+1)) / (1 - b1^(t+1))``, rounds counted from 1."""
    return ETA * np.sqrt(1 - BETA2 ** (index + 1)) / (1 - BETA1 ** (index + 1)) if name == "fedadam" else ETA


@pytest.mark.parametrize("name", ADAPTIVE)
def test_from_a_second_moment_of_nought_an_adaptive_step_is_flowers(name: str) -> None:
    rng, other = np.random.default_rng(11), flowers(name)
    current = again = {"weight": rng.normal(size=(4, 3)).astype(np.float32)}
    state, kept = NOUGHT, {}
    for index in (1, 2, 3, 4):
        updates = drawn(rng, current)
        mine = ours(name, corrected(name, index))
        current, state = mine.aggregate(current, KINDS, updates, state, index, 5)
        again, kept = other.aggregate(again, KINDS, updates, kept, index)
        np.testing.assert_allclose(current["weight"], again["weight"], rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(state["v/weight"], kept["v_t/dict/000000/weight"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_as_the_paper_begins_the_second_moment_is_above_flowers_by_what_is_left_of_tau_squared(name: str) -> None:
    """Of the same changes: Adam's start decays by beta2 a round; Yogi's stays whole as long as the moment grows."""
    rng, mine, other = np.random.default_rng(13), ours(name), flowers(name)
    current = {"weight": rng.normal(size=(4, 3)).astype(np.float32)}
    change = rng.uniform(1, 2, (4, 3))  # far above tau: both of Yogi's moments grow, whatever they began at
    state, kept = mine.initial_state(current, KINDS), {}
    for index in (1, 2, 3):
        tensors = {"weight": (current["weight"] + index * change).astype(np.float32)}
        updates = [SiteUpdate(site, tensors, 1) for site in "abc"]
        _, state = mine.aggregate(current, KINDS, updates, state, index, 3)
        _, kept = other.aggregate(current, KINDS, updates, kept, index)
        left = TAU**2 * (BETA2**index if name == "fedadam" else 1)
        np.testing.assert_allclose(state["v/weight"] - kept["v_t/dict/000000/weight"], left, rtol=0, atol=2e-6)
        np.testing.assert_allclose(state["m/weight"], kept["m_t/dict/000000/weight"], rtol=1e-5, atol=1e-6)
