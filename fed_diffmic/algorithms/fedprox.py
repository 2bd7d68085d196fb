"""FedProx (Li et al. 2020, eq. 2): a site minimises ``F_k(w) + mu/2 ||w - w_t||^2``; averaged as FedAvg."""

from __future__ import annotations

import torch

from fed_diffmic.algorithms.base import Algorithm, LocalContext, SiteHalf, register_algorithm


class Proximal(SiteHalf):
    """``weight/2`` times the squared distance of the trainable parameters to the round's global values.

    Neither buffers nor what is frozen are held.
    """

    def __init__(self, context: LocalContext, weight: float) -> None:
        self._weight = weight
        self._pairs = [(p, context.reference[name]) for name, p in context.trained()]

    def penalty(self) -> torch.Tensor | None:
        """The proximal term."""
        if self._weight == 0:
            return None
        return 0.5 * self._weight * torch.stack([(p - r).pow(2).sum() for p, r in self._pairs]).sum()


@register_algorithm("fedprox")
class FedProx(Algorithm):
    """``strategy.mu`` is the proximal term's weight; 0 is FedAvg."""

    needs = "sums"

    def site_half(self, context: LocalContext) -> SiteHalf:
        """The proximal term."""
        return Proximal(context, self.config.mu)
