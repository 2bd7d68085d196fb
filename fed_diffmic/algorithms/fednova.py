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
    Algorithm,
    SiteUpdate,
    Tensors,
    mean_change,
    parameters_of,
    register_algorithm,
    stated,
    with_rest,
)
from fed_diffmic.algorithms.shares import capped
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

    needs_steps = True

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """The normalised average; raises RoundError where a site does not say its steps."""
        weights, names = self.site_weights(updates), parameters_of(kinds)
        steps = stated(updates, "steps", "fednova")
        momentum = self.stage.momentum if self.stage.optimizer == "sgd" else 0.0
        moves = {site: accumulation(max(count, 1.0), momentum) for site, count in steps.items()}
        # A number of steps is a site's own word. Many would multiply everyone's change, few the site's own: both are
        # capped.
        parts = capped({site: weights[site] * moves[site] for site in moves}, self.max_share)
        effective = sum(parts[site] for site in sorted(parts))
        rates = capped({site: weights[site] / moves[site] for site in moves}, self.max_share)
        change = mean_change(current, updates, names, rates)
        moved = {name: current[name].astype(np.float64) + effective * change[name] for name in names}
        return with_rest(moved, current, kinds, updates, weights), state
