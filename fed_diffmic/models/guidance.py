"""Guidance network (dual-conditional guidance, DCG): the paper's section on the condition.

A global encoder gives a saliency map and logits for the whole image; the most salient regions are
cut out and give local logits through attention. Stage ``guidance`` trains it on the task; the
diffusion then uses it frozen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.centre import FeatureCentre
from fed_diffmic.models.regions import RegionSearch


class GuidanceOutput(NamedTuple):
    """What the guidance network says of ``B`` images.

    Attributes:
        y_global: logits of the whole image, ``(B, C)``.
        y_local: logits of the regions, ``(B, C)``.
        fused: their mean, ``(B, C)``: what stage ``guidance`` trains.
        saliency: ``(B, C, G, G)``.
        cells: upper left cells of the regions, ``(B, K, 2)``, row and column.
        pixels: the same in pixels, ``(B, K, 2)``.
        crops: ``(B, K, 3, c, c)``.
        attention: weights of the regions, ``(B, K)``, rows sum to 1.
    """

    y_global: Tensor
    y_local: Tensor
    fused: Tensor
    saliency: Tensor
    cells: Tensor
    pixels: Tensor
    crops: Tensor
    attention: Tensor


def top_cells_mean(saliency: Tensor, percent: float) -> Tensor:
    """Mean of the highest ``percent`` of the cells of each class: ``(B, C, G, G)`` to ``(B, C)``.

    At least one cell counts; the number of cells is rounded.
    """
    cells = saliency.flatten(2)
    count = max(1, round(cells.shape[2] * percent / 100))
    if count < cells.shape[2]:
        cells = cells.topk(count, dim=2).values
    return cells.mean(dim=2)


class AttentionPool(nn.Module):
    """Gated attention over the regions (multiple-instance learning; Ilse et al. 2018).

    ``a = softmax_k(w . (sigmoid(U h_k) * tanh(V h_k)))``, no biases.

    Args:
        width: channels ``W`` of a region's features.
        hidden: hidden width (paper 128).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.U = nn.Linear(width, hidden, bias=False)
        self.V = nn.Linear(width, hidden, bias=False)
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(B, K, W)`` to weights ``(B, K)`` and their weighted sum ``(B, W)``."""
        score = self.w(torch.sigmoid(self.U(h)) * torch.tanh(self.V(h))).squeeze(-1)
        attention = torch.softmax(score, dim=1)
        return attention, (attention.unsqueeze(-1) * h).sum(dim=1)


class LocalHead(nn.Module):
    """Regions' features to attention and local logits: attention pooling, then a linear layer without bias.

    Args:
        width: channels ``W`` of a region's features.
        hidden: hidden width of the attention.
        num_classes: ``C``.
    """

    def __init__(self, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.attention = AttentionPool(width, hidden)
        self.classifier = nn.Linear(width, num_classes, bias=False)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(B, K, W)`` to attention ``(B, K)`` and ``y_local (B, C)``."""
        attention, pooled = self.attention(h)
        return attention, self.classifier(pooled)


def pooled_crops(encoder: nn.Module, crops: Tensor) -> Tensor:
    """Spatial mean of an encoder's features of each crop: ``(B, K, 3, c, c)`` to ``(B, K, W)``."""
    features = encoder(crops.flatten(0, 1))
    return features.mean(dim=(2, 3)).unflatten(0, crops.shape[:2])


class GuidanceNetwork(nn.Module):
    """Saliency, regions, and global, local and fused logits.

    Args:
        global_encoder: ``(B, 3, H, H)`` to ``(B, W, G, G)``.
        local_encoder: ``(B K, 3, c, c)`` to a feature map.
        regions: the search, made for this grid and side.
        num_classes: ``C``.
        top_percent: per cent of cells that make the global logits (paper 100).
        attention: hidden width of the attention (paper 128).
        region_map: ``sum``: regions are sought in the sum of all class maps; ``probable``: each map weighs as its
            class's share in the softmax of the global logits.
        centred: scale and centre both encoders' features (:class:`FeatureCentre`); the encoders must be frozen.
    """

    def __init__(
        self,
        global_encoder: Encoder,
        local_encoder: Encoder,
        regions: RegionSearch,
        *,
        num_classes: int,
        top_percent: float,
        attention: int,
        region_map: str = "sum",
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.region_map = region_map
        self.global_encoder = global_encoder
        self.saliency = nn.Conv2d(global_encoder.width, num_classes, kernel_size=1, bias=False)
        self.regions = regions
        self.local_encoder = local_encoder
        self.local_head = LocalHead(local_encoder.width, attention, num_classes)
        self.top_percent = top_percent
        self.global_centre = FeatureCentre(global_encoder.width) if centred else None
        self.local_centre = FeatureCentre(local_encoder.width) if centred else None

    def freeze_encoders(self) -> None:
        """Freeze both encoders for good (``stages.guidance.encoders=frozen``): saliency and local head alone train."""
        self.global_encoder.freeze()
        self.local_encoder.freeze()

    def forward(self, images: Tensor) -> GuidanceOutput:
        """Normalised images ``(B, 3, H, H)`` to :class:`GuidanceOutput`."""
        saliency = self.saliency(self._grid(images))
        y_global = top_cells_mean(saliency, self.top_percent)
        cells, pixels, crops = self._search(images, saliency, y_global)
        attention, y_local = self.local_head(self._regions(crops))
        fused = (y_global + y_local) / 2
        return GuidanceOutput(y_global, y_local, fused, saliency, cells, pixels, crops, attention)

    @torch.no_grad()
    def encoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoders say, without gradient: ``(B, W, G, G)`` of images and ``(B, K, W')`` of their regions.

        Centred, where the network centres. The regions are those of the saliency's weights as they are now.
        """
        grid = self._grid(images)
        saliency = self.saliency(grid)
        _, _, crops = self._search(images, saliency, top_cells_mean(saliency, self.top_percent))
        return grid, self._regions(crops)

    def fused(self, grid: Tensor, regions: Tensor) -> Tensor:
        """Fused logits ``(B, C)`` of what :meth:`encoded` gave; the same as :meth:`forward`'s."""
        _, y_local = self.local_head(regions)
        return (top_cells_mean(self.saliency(grid), self.top_percent) + y_local) / 2

    def _grid(self, images: Tensor) -> Tensor:
        features: Tensor = self.global_encoder(images)
        return features if self.global_centre is None else self.global_centre.grid(features)

    def _regions(self, crops: Tensor) -> Tensor:
        features = pooled_crops(self.local_encoder, crops)
        if self.local_centre is None:
            return features
        centred: Tensor = self.local_centre(features)
        return centred

    def _search(self, images: Tensor, saliency: Tensor, y_global: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, pixels and crops of the regions; no gradient flows through the choice."""
        weights = torch.softmax(y_global.detach(), dim=1) if self.region_map == "probable" else None
        cells, pixels, crops = self.regions(images, saliency.detach(), weights)
        return cells, pixels, crops


def guidance_cells(y_global: Tensor, y_local: Tensor, regions: int) -> Tensor:
    """The guidance map's distinct cells: ``(B, K, C)``, cell ``m`` being every ``(i, j)`` with ``|i - j| = m``.

    ``(1 - d) * y_global + d * y_local`` with ``d = m / (K - 1)``.
    """
    d = (torch.arange(regions, device=y_global.device, dtype=y_global.dtype) / (regions - 1)).unsqueeze(1)
    return (1 - d) * y_global.unsqueeze(1) + d * y_local.unsqueeze(1)


def cells_to_map(cells: Tensor) -> Tensor:
    """Distinct cells ``(B, K, C)`` to the dense map ``(B, C, K, K)``."""
    index = torch.arange(cells.shape[1], device=cells.device)
    distance = (index.unsqueeze(0) - index.unsqueeze(1)).abs()
    return cells[:, distance].permute(0, 3, 1, 2)


def guidance_map(y_global: Tensor, y_local: Tensor, regions: int) -> Tensor:
    """Dense guidance map ``M (B, C, K, K)`` from logits ``(B, C)``, no softmax (design section 3).

    ``M[i, j] = (1 - d) * y_global + d * y_local`` with ``d = |i - j| / (K - 1)``.
    """
    return cells_to_map(guidance_cells(y_global, y_local, regions))
