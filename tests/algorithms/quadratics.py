"""A federation whose answer is known: site ``k`` minimises ``F_k(w) = a_k / 2 (w - b_k)^2``, one number each.

The weighted objective's minimum is ``sum p_k a_k b_k / sum p_k a_k``; each site's own is ``b_k``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from fed_diffmic.algorithms import EXTRA, LocalContext, SiteUpdate, Tensors, build_algorithm
from fed_diffmic.algorithms.base import SUMS
from fed_diffmic.algorithms.sums import plain_sums
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from server.aggregation import share_of_all

KINDS = {"weight": "parameter"}


@dataclass
class Site:
    """``F(w) = a/2 (w - b)^2`` with ``n`` images, ``steps`` steps a round."""

    name: str
    a: float
    b: float
    n: int = 1
    steps: int = 10
    state: Tensors = field(default_factory=dict)

    def loss(self, w: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.a * (w - self.b).pow(2).sum()


@dataclass
class Federation:
    """Rounds of an algorithm over quadratics, with both its real halves."""

    strategy: StrategyConfig
    sites: list[Site]
    lr: float = 0.1
    momentum: float = 0.0
    start: float = 0.0

    def __post_init__(self) -> None:
        stage = StageConfig(optimizer="sgd", momentum=self.momentum, lr=self.lr)
        self.algorithm = build_algorithm(self.strategy, stage)
        self.current: Tensors = {"weight": np.full((1, 1), self.start, np.float64)}
        self.state = self.algorithm.initial_state(self.current, KINDS)
        self.round = 0

    @property
    def w(self) -> float:
        return float(self.current["weight"][0, 0])

    @property
    def optimum(self) -> float:
        equal = self.strategy.weighting == "equal"
        p = [1.0 if equal else s.n for s in self.sites]
        return sum(q * s.a * s.b for q, s in zip(p, self.sites, strict=True)) / sum(
            q * s.a for q, s in zip(p, self.sites, strict=True)
        )

    def train(self, site: Site) -> SiteUpdate:
        """One local update; the site's state is kept in it."""
        network = nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(self.current["weight"]))
        initial = float(site.loss(network.weight.detach()))
        reference = {"weight": network.weight.detach().clone()}
        received = self.algorithm.broadcast(self.current, self.state)
        assert all(name.startswith(EXTRA) for name in received)
        half = self.algorithm.site_half(LocalContext(network, reference, KINDS, received, site.state))
        self.descend(site, network, half.penalty, half.correct)
        tensors = {"weight": network.weight.detach().numpy().copy()}
        if half.personal:
            own = {**self.current, **half.personal_start()}
            with torch.no_grad():
                network.weight.copy_(torch.from_numpy(own["weight"]))
            self.descend(site, network, half.personal_penalty, lambda: None)
            half.keep_personal({"weight": network.weight.detach().numpy().copy()})
        algorithm_tensors, site.state = half.finish()
        assert algorithm_tensors.keys() == received.keys()
        return SiteUpdate(site.name, tensors, site.n, algorithm_tensors, float(site.steps), initial)

    def descend(self, site, network, penalty, correct) -> None:
        """SGD as torch's, written out: its optimizer takes most of the time of a step of one number."""
        weight, moved = network.weight, torch.zeros_like(network.weight)
        for _ in range(site.steps):
            weight.grad = None
            term = penalty()
            loss = site.loss(weight)
            (loss if term is None else loss + term).backward()
            correct()
            with torch.no_grad():
                moved.mul_(self.momentum).add_(weight.grad)
                weight.sub_(moved, alpha=self.lr)

    def rounds(self, count: int, absent=lambda index, site: False) -> float:
        for _ in range(count):
            self.round += 1
            updates = [self.train(s) for s in self.sites if not absent(self.round, s.name)]
            take = self.take_sums if self.algorithm.needs == SUMS else self.algorithm.aggregate
            self.current, self.state = take(self.current, KINDS, updates, self.state, self.round, len(self.sites))
        return self.w

    def take_sums(self, current, kinds, updates, state, index, count) -> tuple[Tensors, Tensors]:
        """The server half on sums, which know what part of all sites' weight is in them, as in a run."""
        algorithm, there = self.algorithm, {update.site for update in updates}
        weights = algorithm.site_weights(updates)
        before = {**current, **algorithm.broadcast(current, state)}
        sums = plain_sums(before, kinds, updates, weights, algorithm.rates(updates, weights))
        share = share_of_all(sums.sites, algorithm, {s.name: s.n for s in self.sites if s.name not in there})
        return algorithm.from_sums(current, kinds, replace(sums, share=share), state, index, count)
