"""FedAdam (Reddi et al. 2021, "Adaptive federated optimization", Algorithm 2): Adam at the server.

With ``d_t = sum_k p_k (w_k - w_t)``: ``m_t = b1 m_{t-1} + (1 - b1) d_t``, ``v_t = b2 v_{t-1} + (1 - b2) d_t^2`` and
``w_{t+1} = w_t + eta m_t / (sqrt(v_t) + tau)``. As in the paper's algorithm there is no bias correction, and
``v_{-1} = tau^2`` (it asks for at least that).

Flower's ``FedAdam`` is another: it begins at ``v_{-1} = 0``, so that after ``t`` rounds of the same changes its second
moment is smaller by ``b2^t tau^2``, and it corrects bias, with ``eta sqrt(1 - b2^(t+1)) / (1 - b1^(t+1))`` for ``eta``
in round ``t`` from 1. The first steps are larger there; with both taken away the two are equal, which a test holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import (
    SUMS,
    Algorithm,
    Tensors,
    parameters_of,
    register_algorithm,
    with_means,
)
from fed_diffmic.algorithms.sums import Sums
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own


@dataclass(frozen=True)
class Options(Own):
    """FedAdam (Reddi et al. 2021): the server takes the sites' mean change as a gradient, for Adam."""

    server_lr: float = option(0.01, "learning rate of the server's step", gt=0, le=1000)
    server_momentum: float = option(0.9, "decay beta1 of the server's first moment", ge=0, lt=1)
    server_beta2: float = option(0.99, "decay of the server's second moment", ge=0, lt=1)
    server_tau: float = option(1e-3, "degree of adaptivity tau (the smaller, the more)", gt=0, le=1)


@register_algorithm("fedadam", Options)
class FedAdam(Algorithm):
    """Sites train freely. State: ``m/<name>`` and ``v/<name>``, float64.

    ``strategy.server_lr`` is ``eta``, ``strategy.server_momentum`` ``b1``, ``strategy.server_beta2`` ``b2``,
    ``strategy.server_tau`` ``tau``.
    """

    needs = SUMS
    mean_of_updates = True
    options: Options

    def second_moment(self, before: np.ndarray, change: np.ndarray) -> np.ndarray:
        """``v_t`` from ``v_{t-1}`` and ``d_t``, of one tensor."""
        beta2 = self.options.server_beta2
        return np.asarray(beta2 * before + (1.0 - beta2) * change**2)

    def from_sums(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        sums: Sums,
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """One adaptive step of the server."""
        own, moved, after = self.options, {}, {}
        for name in parameters_of(kinds):
            change = sums.change(name)
            first = server_state.get(f"m/{name}", np.zeros_like(change))
            second = server_state.get(f"v/{name}", np.full_like(change, own.server_tau**2))
            first = own.server_momentum * first + (1.0 - own.server_momentum) * change
            second = self.second_moment(second, change)
            after[f"m/{name}"], after[f"v/{name}"] = first, second
            step = own.server_lr * first / (np.sqrt(second) + own.server_tau)
            moved[name] = (current[name].astype(np.float64) + step).astype(current[name].dtype)
        return with_means(moved, current, kinds, sums), after
