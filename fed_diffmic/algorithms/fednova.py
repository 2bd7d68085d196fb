"""FedNova (Wang et al. 2020, "Tackling the objective inconsistency problem", eq. 7 and section 4): unequal local steps.

A site's change is divided by how much its local steps moved it, so that a site with more steps does not count for more:
``d_k = (w_t - w_k) / ||a_k||_1``, ``w_{t+1} = w_t - tau_eff sum_k p_k d_k`` with ``tau_eff = sum_k p_k ||a_k||_1``. For
SGD ``||a_k||_1`` is the number of steps ``tau_k``; with momentum ``rho`` it is ``(tau_k - rho (1 - rho^tau_k) / (1 -
rho)) / (1 - rho)`` (the paper's table of local optimizers). The paper does not treat Adam: there ``tau_k`` is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import (
    SUMS,
    Algorithm,
    SiteUpdate,
    Tensors,
    parameters_of,
    register_algorithm,
    stated,
    with_means,
)
from fed_diffmic.algorithms.shares import capped
from fed_diffmic.algorithms.sums import Sums
from fed_diffmic.config.owners import Own


def accumulation(steps: float, momentum: float) -> float:
    """``||a_k||_1``: how far ``steps`` steps of SGD with that momentum move, in units of one step's gradient."""
    if momentum == 0.0:
        return steps
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)


@dataclass(frozen=True)
class Options(Own):
    """FedNova (Wang et al. 2020): a site's change is divided by its steps, so that unequal work does not bias."""


@register_algorithm("fednova", Options)
class FedNova(Algorithm):
    """Sites train freely, and say how many steps they took; ``rho`` is the stage's momentum where it trains by SGD."""

    needs = SUMS
    needs_steps = True
    divides = True

    def from_sums(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        sums: Sums,
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """The normalised average; raises RoundError where a site does not say its steps."""
        effective = self._effective(sums.sites) if sums.moves is None else sums.moves
        moved = {
            name: (current[name].astype(np.float64) + effective * sums.change(name)).astype(current[name].dtype)
            for name in parameters_of(kinds)
        }
        return with_means(moved, current, kinds, sums), server_state

    def _effective(self, sites: Sequence[SiteUpdate]) -> float:
        """``tau_eff``, of steps that each site said."""
        weights, moves = self.site_weights(sites), self._moves(sites)
        # A number of steps is a site's own word. Many would multiply everyone's change, few the site's own: both are
        # capped.
        parts = capped({site: weights[site] * moves[site] for site in moves}, self.max_share)
        return sum(parts[site] for site in sorted(parts))

    def rates(self, updates: Sequence[SiteUpdate], weights: Mapping[str, float]) -> dict[str, float]:
        """``p_k / ||a_k||_1``; raises RoundError where a site does not say its steps."""
        moves = self._moves(updates)
        return capped({site: weights[site] / moves[site] for site in moves}, self.max_share)

    def _moves(self, updates: Sequence[SiteUpdate]) -> dict[str, float]:
        return {site: self.moves(count) for site, count in stated(updates, "steps", "fednova").items()}

    def moves(self, steps: float) -> float:
        """``||a_k||_1``; momentum makes it more than the steps."""
        momentum = self.stage.momentum if self.stage.optimizer == "sgd" else 0.0
        return accumulation(max(steps, 1.0), momentum)
