"""Faults seen: a server's step that is not the optimizer's that it names, a share that nobody gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms import SiteUpdate, build_algorithm
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from fed_diffmic.errors import ConfigError


def algorithm(stage: StageConfig | None = None, **options: Any) -> FedSgd:
    made = build_algorithm(StrategyConfig(name="fedsgd", options=options), stage)
    assert isinstance(made, FedSgd)
    return made


@pytest.mark.parametrize("step", [0.05, None])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_servers_step_is_torchs_at_the_strategys_rate_or_the_stages(optimizer: str, step: float | None) -> None:
    rng = np.random.default_rng(0)
    weights = {"b": rng.normal(size=3).astype(np.float32), "w": rng.normal(size=(2, 4)).astype(np.float32)}
    stage = StageConfig(lr=0.05 if step is None else 3.0)
    ours = algorithm(stage, server_optimizer=optimizer, step_size=step, beta1=0.8, beta2=0.95)
    kinds = dict.fromkeys(weights, "parameter")
    parameters = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in weights.items()}
    theirs: torch.optim.Optimizer = torch.optim.SGD(parameters.values(), lr=0.05, momentum=0.8)
    if optimizer == "adam":
        theirs = torch.optim.Adam(parameters.values(), lr=0.05, betas=(0.8, 0.95))
    state: dict[str, np.ndarray] = {}
    for index in range(1, 6):
        gradient = {name: rng.normal(size=value.shape) for name, value in weights.items()}
        moved = {name: value.astype(np.float64) - gradient[name] for name, value in weights.items()}
        updates = [SiteUpdate(site, moved, 1) for site in ("a", "b")]
        weights, state = ours.aggregate(weights, kinds, updates, state, index)
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradient[name]).float()
        theirs.step()
    for name, parameter in parameters.items():
        assert weights[name].dtype == np.float32
        assert np.allclose(weights[name], parameter.detach().numpy(), atol=2e-6)
    assert state["steps"].tolist() == [5.0]


def test_a_round_that_finds_the_mean_of_the_features_is_no_step() -> None:
    """The mean is taken as it is; weights, moments and their count stay, and the next step is the first one."""
    weights = {"mean": np.zeros(3, np.float32), "w": np.ones((2, 3), np.float32)}
    kinds, ours = {"mean": "buffer", "w": "parameter"}, algorithm(step_size=0.05)
    found = {"mean": np.array([0.25, -1.0, 0.0]), "w": weights["w"].astype(np.float64)}
    centred, state = ours.aggregate(weights, kinds, [SiteUpdate("a", found, 1)], {}, 1)
    assert state == {} and np.array_equal(centred["w"], weights["w"])
    assert centred["mean"].dtype == np.float32 and centred["mean"].tolist() == [0.25, -1.0, 0.0]
    moved = {"mean": centred["mean"].astype(np.float64), "w": found["w"] - 0.5}
    after, state = ours.aggregate(centred, kinds, [SiteUpdate("a", moved, 1)], state, 2)
    assert np.array_equal(after["mean"], centred["mean"]) and set(state) == {"m/w", "v/w", "steps"}
    np.testing.assert_allclose(after["w"], 0.95, atol=1e-6)  # Adam's first step is as long as its rate


def test_a_run_without_a_share_does_not_begin() -> None:
    with pytest.raises(ConfigError, match="noise_share"):
        _ = algorithm().share
    assert algorithm(noise_share=0.25).share == 0.25
    assert algorithm().gradient_sums
    assert not build_algorithm(StrategyConfig()).gradient_sums
