"""Features of frozen encoders, scaled to one length and centred (``model.features=centred``; ours, not the paper's).

What an image's features have in common with every other image's tells no class, but it is most of their length, and so
most of a unit's gradient: under differential privacy that length is what clipping allows and noise is measured against.
Without it the same noise hides less (Tramer and Boneh 2021 normalise features for the same reason). The
mean over the sites is found in the first round of a stage (:mod:`fed_diffmic.training.centring`) and then stays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST = 1e-12  # of a mean square: features that are all 0 stay 0


class FeatureCentre(nn.Module):
    """``x / rms(x) - mean``; before the mean is known it is 0.

    Args:
        width: channels ``W``.
    """

    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(..., W)`` to centred ones; what is subtracted from has a root mean square of 1, or is 0."""
        return x * _inverse_rms(x) - self.mean

    def grid(self, x: Tensor) -> Tensor:
        """The same of a map ``(B, W, G, G)``: its mean over the cells has a root mean square of 1 before centring."""
        scale = _inverse_rms(x.mean(dim=(2, 3))).unsqueeze(2).unsqueeze(3)
        return x * scale - self.mean[:, None, None]


def _inverse_rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=-1, keepdim=True).clamp_min(LEAST).rsqrt()


def centre_names(network: nn.Module) -> list[str]:
    """Names of the means in a network's state, sorted."""
    return sorted(
        f"{prefix}.mean" if prefix else "mean"
        for prefix, layer in network.named_modules()
        if isinstance(layer, FeatureCentre)
    )
