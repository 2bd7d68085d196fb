"""Images from the gradient of a first layer, in closed form.

A vision transformer's patches enter as ``z_p = W x_p + b + e_p``. Its gradient with respect to the position ``e_p`` is
that of ``z_p``, and that with respect to ``W`` is ``sum_p dz_p x_p^T``: with one image as many equations as unknowns,
solved exactly (Lu et al. 2022, APRIL). With more images ``dz_p`` is a sum over them, and the solution a mixture.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def positions_of(names: Mapping[str, Tensor]) -> list[str]:
    """Prefixes of vision transformers among the parameters, those with positions and patches of their own."""
    found = [name.removesuffix("pos_embed") for name in names if name.endswith("pos_embed")]
    return [prefix for prefix in found if f"{prefix}patch_embed.proj.weight" in names]


def solve_patches(gradient: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    """The image behind a vision transformer's gradient, ``(1, 3, H, H)`` normalised; none where it has other tokens.

    Args:
        prefix: of the transformer's parameters.
    """
    positions = gradient[f"{prefix}pos_embed"][0].double()
    patches = gradient[f"{prefix}patch_embed.proj.weight"].double()
    width, channels, side, _ = patches.shape
    count = positions.shape[0]
    grid = round(count**0.5)
    if grid * grid != count:  # a class token comes first
        positions, grid = positions[1:], round((count - 1) ** 0.5)
    if grid * grid != len(positions):
        return None
    solved = torch.linalg.lstsq(positions.T, patches.reshape(width, -1), driver="gelsd").solution
    cells = solved.reshape(grid, grid, channels, side, side).permute(2, 0, 3, 1, 4)
    return cells.reshape(1, channels, grid * side, grid * side).float()
