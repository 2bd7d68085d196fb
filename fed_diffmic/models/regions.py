"""Regions of interest: where the saliency map is highest, cut out of the image.

No loop over images or crops, no copy to the host; the only loop is over the ``K`` regions, whose
search is sequential by definition (each one blanks its cells before the next is sought).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-12
"""Below this range (max - min) a class map counts as constant and contributes nothing."""


def window_side(crop: int, grid: int, side: int) -> int:
    """Cells that the side of a crop covers: ``max(1, round(crop * grid / side))``."""
    return max(1, round(crop * grid / side))


def window_count(crop: int, grid: int, side: int) -> int:
    """Number of windows of a ``grid x grid`` map: the most regions there can be."""
    free = grid - window_side(crop, grid, side) + 1
    return free * free if free > 0 else 0


class RegionSearch(nn.Module):
    """Find ``K`` distinct regions in a saliency map and cut them out of the image.

    Args:
        regions: ``K``.
        crop: side ``c`` of a crop in pixels.
        side: side ``H`` of the image in pixels.
        grid: side ``G`` of the saliency map in cells.
        channels: ``all``, or ``first``: the image's first channel, repeated (as the paper's code does).

    Raises:
        ValueError: a crop larger than the image, or fewer than ``K`` windows
            (:func:`fed_diffmic.models.diffmic.check_model_config` says it to the user).
    """

    pixel_of_cell: Tensor

    def __init__(self, *, regions: int, crop: int, side: int, grid: int, channels: str = "all") -> None:
        super().__init__()
        if crop > side or window_count(crop, grid, side) < regions:
            raise ValueError(f"{regions} regions of {crop} px do not fit a {grid} x {grid} map of {side} px")
        self.regions = regions
        self.crop = crop
        self.side = side
        self.grid = grid
        self.window = window_side(crop, grid, side)
        self.channels = channels
        pixels = [min(round(cell / grid * side), side - crop) for cell in range(grid)]
        self.register_buffer("pixel_of_cell", torch.tensor(pixels), persistent=False)

    @torch.no_grad()
    def search(self, saliency: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Upper left corners of the regions, best first.

        Each class map is scaled to [0, 1] and the classes are summed (the paper's code), or summed with ``weights``:
        where classes exclude each other, the maps of those that are not there are highest beside what is there, and
        an unweighted sum of many of them leads away from it. Then, ``K`` times, the window
        with the highest mean is taken (the first in row-major order on a tie) and its cells are set
        to 0. A window is never taken twice and a constant class map counts as 0, so that any map,
        a constant one too, gives ``K`` distinct regions.

        Args:
            saliency: ``(B, C, G, G)``.
            weights: of the class maps, ``(B, C)``, not negative; none: all alike.

        Returns:
            cells ``(B, K, 2)`` and pixels ``(B, K, 2)``: row and column, int64.
        """
        saliency = saliency.float()
        low = saliency.amin(dim=(2, 3), keepdim=True)
        span = saliency.amax(dim=(2, 3), keepdim=True) - low
        scaled = torch.where(span > EPSILON, (saliency - low) / span.clamp_min(EPSILON), torch.zeros_like(saliency))
        if weights is not None:
            scaled = scaled * weights.float()[:, :, None, None]
        heat = scaled.sum(dim=1)  # (B, G, G)

        places = self.grid - self.window + 1
        axis = torch.arange(self.grid, device=heat.device)
        window_index = torch.arange(places * places, device=heat.device)
        taken = torch.zeros_like(heat[:, :places, :places].flatten(1), dtype=torch.bool)
        cells = []
        for _ in range(self.regions):
            means = F.avg_pool2d(heat.unsqueeze(1), self.window, stride=1).flatten(1)
            best = means.masked_fill(taken, -torch.inf).argmax(dim=1)  # the first of equal values
            row, column = best // places, best % places
            taken = taken | (window_index == best.unsqueeze(1))
            in_rows = (axis >= row.unsqueeze(1)) & (axis < (row + self.window).unsqueeze(1))
            in_columns = (axis >= column.unsqueeze(1)) & (axis < (column + self.window).unsqueeze(1))
            heat = heat.masked_fill(in_rows.unsqueeze(2) & in_columns.unsqueeze(1), 0.0)
            cells.append(torch.stack([row, column], dim=1))
        chosen = torch.stack(cells, dim=1)
        return chosen, self.pixel_of_cell[chosen]

    def cut(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Crops ``(B, K, channels, c, c)`` of ``images (B, channels, H, H)`` at ``pixels (B, K, 2)``."""
        if images.shape[-2:] != (self.side, self.side):
            raise ValueError(
                f"images of {tuple(images.shape[-2:])} pixels given to a model made for {self.side} x {self.side}"
            )
        if self.channels == "first":
            crops = self._gather(images[:, :1], pixels)
            return crops.expand(-1, -1, images.shape[1], -1, -1)
        return self._gather(images, pixels)

    def _gather(self, images: Tensor, pixels: Tensor) -> Tensor:
        batch, channels = images.shape[:2]
        offset = torch.arange(self.crop, device=images.device)
        rows = pixels[:, :, 0, None] + offset  # (B, K, c)
        columns = pixels[:, :, 1, None] + offset
        flat = (rows.unsqueeze(3) * self.side + columns.unsqueeze(2)).flatten(1)  # (B, K c c)
        picked = images.flatten(2).gather(2, flat.unsqueeze(1).expand(-1, channels, -1))
        return picked.reshape(batch, channels, self.regions, self.crop, self.crop).transpose(1, 2)

    def forward(self, images: Tensor, saliency: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``(B, 3, H, H)`` and saliency ``(B, C, G, G)`` to cells, pixels ``(B, K, 2)`` and crops."""
        cells, pixels = self.search(saliency, weights)
        return cells, pixels, self.cut(images, pixels)
