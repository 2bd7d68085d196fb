"""Image feature prior ``F``: one vector for each image from its whole and from its regions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.guidance import pooled_crops
from fed_diffmic.models.normalisation import row_norm


class PriorFusion(nn.Module):
    """Normalise the embeddings and mix them channel by channel with learned weights.

    ``F = sum_k softmax_k(gate) * e_k`` with ``e_0`` the global and ``e_1..e_K`` the region embeddings.

    Args:
        latent: ``D``.
        regions: ``K``.
        norm: ``batch`` or ``group``.
    """

    def __init__(self, latent: int, regions: int, norm: str) -> None:
        super().__init__()
        self.global_norm = row_norm(norm, latent)
        self.region_norm = row_norm(norm, latent)
        self.gate = nn.Parameter(torch.zeros(latent, regions + 1))

    def forward(self, global_embedding: Tensor, region_embedding: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` and ``(B, K, D)`` to the prior ``F (B, D)``."""
        first = self.global_norm(global_embedding).unsqueeze(1)
        others = self.region_norm(region_embedding.flatten(0, 1)).unflatten(0, region_embedding.shape[:2])
        embeddings = torch.cat([first, others], dim=1)  # (B, K + 1, D)
        return (torch.softmax(self.gate, dim=1).T * embeddings).sum(dim=1)


class ImagePrior(nn.Module):
    """Encoders, projections to ``D`` and fusion.

    The paper's 1x1 convolution before the spatial mean is applied after it, as a linear layer: both
    are linear, so the result is the same and costs one cell instead of ``G x G``.

    Args:
        global_encoder: encoder of the whole image.
        region_encoder: encoder of a crop.
        latent: ``D``.
        regions: ``K``.
        norm: ``batch`` or ``group``.
    """

    def __init__(
        self, global_encoder: Encoder, region_encoder: Encoder, *, latent: int, regions: int, norm: str
    ) -> None:
        super().__init__()
        self.global_encoder = global_encoder
        self.region_encoder = region_encoder
        self.global_projection = nn.Linear(global_encoder.width, latent)
        self.region_projection = nn.Linear(region_encoder.width, latent)
        self.fusion = PriorFusion(latent, regions, norm)

    def encode(self, images: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, H, H)`` and crops ``(B, K, 3, c, c)`` to pooled features ``(B, Wg)`` and ``(B, K, Wr)``."""
        return self.global_encoder(images).mean(dim=(2, 3)), pooled_crops(self.region_encoder, crops)

    def forward(self, global_pooled: Tensor, region_pooled: Tensor) -> Tensor:
        """Pooled features ``(B, Wg)`` and ``(B, K, Wr)`` to the prior ``F (B, D)``."""
        return self.fusion(self.global_projection(global_pooled), self.region_projection(region_pooled))
