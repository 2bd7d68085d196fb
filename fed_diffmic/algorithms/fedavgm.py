"""FedAvgM (Hsu, Qi and Brown 2019, section 4.2): momentum at the server.

With ``d_t = sum_k p_k (w_t - w_k)``: ``v_t = beta v_{t-1} + d_t`` and ``w_{t+1} = w_t - eta v_t``, where ``eta`` is
``strategy.server_lr`` and ``beta`` is ``strategy.server_momentum``; ``eta = 1``, ``beta = 0`` is FedAvg.
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
    """FedAvgM (Hsu et al. 2019): FedAvg with momentum at the server."""

    server_lr: float = option(1.0, "learning rate of the server's step", gt=0, le=1000)
    server_momentum: float = option(0.9, "momentum of the server", ge=0, lt=1)


@register_algorithm("fedavgm", Options)
class FedAvgM(Algorithm):
    """Sites train freely; the server's step has momentum. State: ``v/<name>``, float64."""

    needs = SUMS
    mean_of_updates = True
    options: Options

    def from_sums(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        sums: Sums,
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """One step of the server's SGD with momentum."""
        moved, after = {}, {}
        for name in parameters_of(kinds):
            change = sums.change(name)
            before = server_state.get(f"v/{name}", np.zeros_like(change))
            velocity = self.options.server_momentum * before - change
            after[f"v/{name}"] = velocity
            moved[name] = (current[name].astype(np.float64) - self.options.server_lr * velocity).astype(
                current[name].dtype
            )
        return with_means(moved, current, kinds, sums), after
