"""FedDyn (Acar et al. 2021, "Federated learning based on dynamic regularization", Algorithm 1).

A site minimises ``F_k(w) - <h_k, w> + alpha/2 ||w - w_t||^2`` and then sets ``h_k <- h_k - alpha (w_k - w_t)``, which
at the minimum is the gradient of ``F_k`` at ``w_k``. The server keeps ``h <- h - alpha s sum_k p_k (w_k - w_t)``,
where ``s`` is the share that the sites that took part have of all sites' weight (``|P|/m`` of ``m`` equal ones), and
``w_{t+1} = sum_k p_k w_k - h / alpha``. With equal weights this is the paper's. As ``s p_k`` does not depend on who
else took part, ``h`` is the weighted sum of all ``h_k``; at a fixed point ``h = 0``, so the weighted sum of the
sites' gradients is zero: local minima are made to agree with the global one, whatever the number of local steps and
whoever was away for some rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fed_diffmic.algorithms.base import (
    EXTRA,
    SUMS,
    Algorithm,
    LocalContext,
    SiteHalf,
    Tensors,
    parameters_of,
    register_algorithm,
    with_means,
)
from fed_diffmic.algorithms.sums import Sums
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own

if TYPE_CHECKING:
    import torch

LINEAR = f"{EXTRA}linear."


class _Dynamic(SiteHalf):
    def __init__(self, context: LocalContext, alpha: float) -> None:
        self._alpha = alpha
        self._parameters = context.trained()
        self._reference = context.reference
        self._linear = context.tensors(context.site_state, LINEAR)

    def penalty(self) -> torch.Tensor | None:
        """``-<h_k, w> + alpha/2 ||w - w_t||^2``."""
        import torch

        terms = [
            0.5 * self._alpha * (p - self._reference[name]).pow(2).sum() - (self._linear[name] * p).sum()
            for name, p in self._parameters
        ]
        return torch.stack(terms).sum()

    def finish(self) -> tuple[Tensors, Tensors]:
        """Nothing of its own for the server; ``h_k`` to keep."""
        reference = self._reference
        moved = {n: self._linear[n] - self._alpha * (p.detach() - reference[n]) for n, p in self._parameters}
        return {}, {LINEAR + name: value.cpu().numpy().copy() for name, value in moved.items()}


@dataclass(frozen=True)
class Options(Own):
    """FedDyn (Acar et al. 2021): a dynamic regulariser makes the sites' minima agree with the global one."""

    feddyn_alpha: float = option(0.1, "weight alpha of the dynamic regulariser", gt=0, le=1000)


@register_algorithm("feddyn", Options)
class FedDyn(Algorithm):
    """``strategy.feddyn_alpha`` is ``alpha``. State of the server: ``h/<name>``, float64; of a site: its ``h_k``."""

    needs = SUMS
    options: Options

    def site_half(self, context: LocalContext) -> SiteHalf:
        """Adds the dynamic regulariser."""
        return _Dynamic(context, self.options.feddyn_alpha)

    def from_sums(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        sums: Sums,
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """Algorithm 1, the server's lines."""
        alpha, share = self.options.feddyn_alpha, sums.present(sites)
        moved, after = {}, {}
        for name in parameters_of(kinds):
            change = sums.change(name)
            before = server_state.get(f"h/{name}", np.zeros_like(change))
            after[f"h/{name}"] = before - alpha * share * change
            stepped = current[name].astype(np.float64) + change - after[f"h/{name}"] / alpha
            moved[name] = stepped.astype(current[name].dtype)
        return with_means(moved, current, kinds, sums), after
