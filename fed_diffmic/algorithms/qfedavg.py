"""q-FedAvg (Li et al. 2020, "Fair resource allocation in federated learning", Algorithm 2): the worse a site is served,
the more it counts.

The objective is ``sum_k p_k / (q + 1) F_k^{q+1}``. With ``L = 1 / lr`` and ``F_k`` the site's loss at ``w_t``:
``delta_k = L (w_t - w_k)``, ``D_k = F_k^q delta_k``, ``h_k = q F_k^{q-1} ||delta_k||^2 + L F_k^q`` and
``w_{t+1} = w_t - sum_k D_k / sum_k h_k``; ``q = 0`` is the plain mean. The paper samples sites by ``p_k`` and averages
alike; here all are asked and ``D_k`` and ``h_k`` are multiplied by ``p_k`` (``strategy.weighting=equal``: the
paper's).

Only ratios of the ``p_k F_k^q`` matter, so they are computed from logarithms, relative to the largest: no loss is too
large or too small for them. The server may cap the share that one site has in their sum (``max_share``); a loss is a
site's own word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import (
    Algorithm,
    SiteUpdate,
    Tensors,
    parameters_of,
    register_algorithm,
    stated,
    with_rest,
)
from fed_diffmic.algorithms.shares import capped
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own
from fed_diffmic.errors import RoundError

LEAST_LOSS = 1e-10
"""In the place of a loss of zero, for ``F^(q-1)``."""


@dataclass(frozen=True)
class Options(Own):
    """q-FedAvg (Li et al. 2020): the worse a site is served by the global model, the more it counts."""

    q: float = option(1.0, "fairness q; 0 is the plain mean", ge=0, le=20)
    lipschitz_lr: float = option(
        0.1, "one over the Lipschitz constant L, about the learning rate of the sites", gt=0, le=1000
    )


@register_algorithm("qfedavg", Options)
class QFedAvg(Algorithm):
    """``strategy.q`` is ``q``; ``L`` is one over ``strategy.lipschitz_lr``. Sites send their loss at ``w_t``."""

    options: Options

    private = False
    needs_initial_loss = True

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """Algorithm 2, line 8; raises RoundError where a site does not say its loss."""
        q, lipschitz = self.options.q, 1.0 / self.options.lipschitz_lr
        weights, names = self.site_weights(updates), parameters_of(kinds)
        losses = stated(updates, "initial_loss", "qfedavg")
        logarithms = {site: q * math.log(max(loss, LEAST_LOSS)) for site, loss in losses.items()}
        largest = max(logarithms.values())
        raw = {site: weights[site] * math.exp(value - largest) for site, value in logarithms.items()}
        share = capped(raw, self.max_share)
        total = {name: np.zeros(current[name].shape) for name in names}
        curvature: dict[str, float] = {}
        for update in sorted(updates, key=lambda u: u.site):
            square = 0.0
            for name in names:
                delta = lipschitz * (current[name].astype(np.float64) - update.tensors[name].astype(np.float64))
                square += float(np.vdot(delta, delta))
                total[name] += share[update.site] * delta
            steepness = q / max(losses[update.site], LEAST_LOSS) * square
            curvature[update.site] = share[update.site] * (steepness + lipschitz)
        # A loss near zero makes a site's h_k as large as it likes, and everyone's step as small: it is capped too.
        limited = capped(curvature, self.max_share)
        scale = sum(limited[site] for site in sorted(limited))
        if not 0.0 < scale < math.inf:
            raise RoundError("strategy=qfedavg: the sites' losses and updates give no finite step", "Lower strategy.q.")
        moved = {name: current[name].astype(np.float64) - total[name] / scale for name in names}
        return with_rest(moved, current, kinds, updates, weights), server_state
