"""q-FedAvg (Li et al. 2020, "Fair resource allocation in federated learning", Algorithm 2): the worse a site is served,
the more it counts.

The objective is ``sum_k p_k / (q + 1) F_k^{q+1}``. With ``L = 1 / lr`` and ``F_k`` the site's loss at ``w_t``:
``delta_k = L (w_t - w_k)``, ``D_k = F_k^q delta_k``, ``h_k = q F_k^{q-1} ||delta_k||^2 + L F_k^q`` and
``w_{t+1} = w_t - sum_k D_k / sum_k h_k``; ``q = 0`` is the plain mean. The paper samples sites by ``p_k`` and averages
alike; here all are asked and ``D_k`` and ``h_k`` are multiplied by ``p_k`` (``strategy.weighting=equal``: the
paper's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


@register_algorithm("qfedavg")
class QFedAvg(Algorithm):
    """``strategy.q`` is ``q``; ``L`` is one over ``strategy.lipschitz_lr``. Sites send their loss at ``w_t``."""

    private = False
    needs_initial_loss = True

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """Algorithm 2, line 8; raises RoundError where a site does not say its loss."""
        q, lipschitz = self.config.q, 1.0 / self.config.lipschitz_lr
        weights, names = self.site_weights(updates), parameters_of(kinds)
        losses = stated(updates, "initial_loss", "qfedavg")
        total = {name: np.zeros(current[name].shape) for name in names}
        scale = 0.0
        for update in sorted(updates, key=lambda u: u.site):
            loss = max(losses[update.site], 1e-10)  # F^(q-1) at a loss of zero
            delta = {
                name: lipschitz * (current[name].astype(np.float64) - update.tensors[name].astype(np.float64))
                for name in names
            }
            square = float(sum(np.vdot(value, value) for value in delta.values()))
            scale += weights[update.site] * (q * loss ** (q - 1.0) * square + lipschitz * loss**q)
            for name in names:
                total[name] += weights[update.site] * loss**q * delta[name]
        moved = {name: current[name].astype(np.float64) - total[name] / scale for name in names}
        return with_rest(moved, current, kinds, updates, weights), state
