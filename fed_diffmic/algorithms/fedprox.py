"""FedProx (Li et al. 2020, eq. 2): a site minimises ``F_k(w) + mu/2 ||w - w_t||^2``; averaged as FedAvg."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fed_diffmic.algorithms.base import Algorithm, Penalty, register_algorithm


@register_algorithm("fedprox")
class FedProx(Algorithm):
    """The proximal term covers trainable parameters only: neither buffers nor what is frozen."""

    def penalty(self, module: nn.Module, reference: Mapping[str, torch.Tensor]) -> Penalty | None:
        """``mu/2`` times the squared distance to the round's global weights."""
        if self.config.mu == 0:
            return None
        pairs = [(p, reference[name]) for name, p in module.named_parameters() if p.requires_grad]

        def term() -> torch.Tensor:
            return 0.5 * self.config.mu * torch.stack([(p - r).pow(2).sum() for p, r in pairs]).sum()

        return term
