"""FedProx (Li et al. 2020, eq. 2): a site minimises ``F_k(w) + mu/2 ||w - w_t||^2``; averaged as FedAvg."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fed_diffmic.algorithms.base import Algorithm, LocalContext, SiteHalf, register_algorithm
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own

if TYPE_CHECKING:
    import torch


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
        import torch

        return 0.5 * self._weight * torch.stack([(p - r).pow(2).sum() for p, r in self._pairs]).sum()


@dataclass(frozen=True)
class Options(Own):
    """FedProx (Li et al. 2020): each site is held near the global weights by mu / 2 * distance^2."""

    mu: float = option(0.01, "weight of the proximal term", ge=0)


@register_algorithm("fedprox", Options)
class FedProx(Algorithm):
    """``strategy.mu`` is the proximal term's weight; 0 is FedAvg."""

    mean_of_updates = True
    options: Options

    def site_half(self, context: LocalContext) -> SiteHalf:
        """The proximal term."""
        return Proximal(context, self.options.mu)
