"""Our averages against Flower's own strategies, over several rounds, on drawn tensors.

FedAvgM, the median, the trimmed mean and Krum are in ``test_on_quadratics.py``. FedAdam and FedYogi are none of them:
ours begin the second moment at ``tau`` squared, as the paper does, Flower's at nought, and its FedAdam corrects bias.
"""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import qfedavg

from fed_diffmic.algorithms import SiteUpdate, build_algorithm
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
