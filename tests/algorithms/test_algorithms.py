"""Both halves of each algorithm against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fed_diffmic.algorithms import (
    LocalContext,
    SiteUpdate,
    algorithm_names,
    build_algorithm,
    register_algorithm,
)
from fed_diffmic.algorithms.base import weighted_average
from fed_diffmic.algorithms.fedavg import FedAvg
from fed_diffmic.algorithms.fedprox import FedProx
from fed_diffmic.config.compose import group_options
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError

KINDS = {"w": "parameter", "running_mean": "buffer", "num_batches_tracked": "counter"}


def update(site: str, w: float, mean: float, count: int, n: int) -> SiteUpdate:
    tensors = {
        "w": np.full((2,), w, np.float32),
        "running_mean": np.full((1,), mean, np.float32),
        "num_batches_tracked": np.array(count, np.int64),
    }
    return SiteUpdate(site, tensors, n)


def test_fedavg_is_the_mean_weighted_by_images():
    updates = [update("b", 4.0, 10.0, 7, 1), update("a", 0.0, 2.0, 3, 3)]
    result, state = FedAvg(StrategyConfig()).aggregate({}, KINDS, updates, {}, 1)
    assert result["w"].tolist() == [1.0, 1.0]
    assert result["running_mean"].tolist() == [4.0]
    assert result["num_batches_tracked"] == 7 and result["num_batches_tracked"].dtype == np.int64
    assert {k: v.dtype for k, v in result.items()} == {k: v.dtype for k, v in updates[0].tensors.items()}
    assert state == {}


def test_equal_weighting_ignores_the_number_of_images():
    updates = [update("b", 4.0, 10.0, 7, 1), update("a", 0.0, 2.0, 3, 3)]
    result, _ = FedAvg(StrategyConfig(weighting="equal")).aggregate({}, KINDS, updates, {}, 1)
    assert result["w"].tolist() == [2.0, 2.0]


def test_order_of_arrival_does_not_change_a_bit():
    rng = np.random.default_rng(0)
    updates = [
        SiteUpdate(f"s{i}", {"w": rng.normal(size=50).astype(np.float32)}, int(rng.integers(1, 99))) for i in range(7)
    ]
    algorithm = FedAvg(StrategyConfig())
    first, _ = algorithm.aggregate({}, {"w": "parameter"}, updates, {}, 1)
    second, _ = algorithm.aggregate({}, {"w": "parameter"}, updates[::-1], {}, 1)
    assert first["w"].tobytes() == second["w"].tobytes()


def test_scalars_stay_scalars():
    updates = [
        SiteUpdate("a", {"w": np.array(1.0, np.float32)}, 1),
        SiteUpdate("b", {"w": np.array(3.0, np.float32)}, 1),
    ]
    result = weighted_average(updates, {"w": "parameter"}, {"a": 0.5, "b": 0.5})
    assert result["w"].shape == () and result["w"] == np.float32(2.0)


def half_of(algorithm, network, reference=None, **rest):
    trainable = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    return algorithm.site_half(LocalContext(network, trainable if reference is None else reference, **rest))


def test_fedprox_penalty_value_and_gradient_cover_trainable_parameters_only():
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1), nn.Linear(1, 1))
    for parameter in network[2].parameters():
        parameter.requires_grad_(False)
    reference = {n: torch.zeros_like(p) for n, p in network.named_parameters() if p.requires_grad}
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        network[1].weight.zero_()
        network[1].bias.zero_()
    value = half_of(FedProx(StrategyConfig(name="fedprox", mu=0.5)), network, reference).penalty()
    assert value.item() == pytest.approx(0.5 * 0.5 * 25.0)
    value.backward()
    assert network[0].weight.grad.tolist() == [[1.5, 2.0]]
    assert network[2].weight.grad is None


def test_fedprox_reaches_the_minimum_of_its_own_objective_on_a_quadratic():
    """F(w) = (w - 4)^2 / 2 from w_t = 0 with mu = 1: the minimum is at 4 / (1 + mu) = 2."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    half = half_of(FedProx(StrategyConfig(name="fedprox", mu=1.0)), network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * (network.weight - 4).pow(2).sum() + half.penalty()).backward()
        optimizer.step()
    assert network.weight.item() == pytest.approx(2.0, abs=1e-5)


def test_mu_zero_adds_nothing():
    assert half_of(FedProx(StrategyConfig(name="fedprox", mu=0.0)), nn.Linear(1, 1)).penalty() is None


def test_registry_is_loud():
    assert {*algorithm_names(), "flower"} == set(group_options("strategy"))
    assert len(algorithm_names()) == 16
    with pytest.raises(ValueError, match="registered twice"):
        register_algorithm("fedavg")(FedAvg)
    with pytest.raises(ConfigError, match="strategy.name=flower"):
        build_algorithm(StrategyConfig(name="flower"))
