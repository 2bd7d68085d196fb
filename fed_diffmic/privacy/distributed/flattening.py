"""Flattening: a rotation after which no coordinate of a vector is large (Kairouz, Liu and Steinke 2021, section 4).

``x -> H D x / sqrt(d)`` with ``H`` the Walsh-Hadamard matrix of side ``d``, a power of two, and ``D`` a diagonal of
random signs, which all sites of a round share and nobody need hide: the rotation keeps every length and so touches no
claim. It makes rounding errors and wrapped sums of single coordinates harmless. Letters: ``d`` width.
"""

from __future__ import annotations

import functools
import math

import torch

from fed_diffmic.seeding import numpy_generator

_SIDE = 128  # of the factors of the matrix that are multiplied by at a time


def width_of(numbers: int) -> int:
    """``d``: the smallest power of two that holds so many numbers (from 1)."""
    return 1 << max(0, numbers - 1).bit_length()


def signs(seed: int, width: int) -> torch.Tensor:
    """``(d,)`` float32 of 1 and -1, the same at every site that knows the seed."""
    bits = numpy_generator(seed, "signs", width).integers(0, 2, width, dtype="int8")
    return torch.from_numpy(bits).mul(2).sub(1).float()


def flatten(rows: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """``(U, d)`` rotated rows."""
    return hadamard(rows * sign.to(rows))


def unflatten(rows: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`flatten`: the matrix is its own inverse."""
    return hadamard(rows) * sign.to(rows)


def hadamard(rows: torch.Tensor) -> torch.Tensor:
    """``(U, d)`` times the orthonormal Walsh-Hadamard matrix.

    The matrix is a Kronecker product of small ones: each is multiplied along the leading factor of the width, which
    then goes last, so that after all of them the factors stand in their order again.
    """
    count, width = rows.shape
    left = width
    while left > 1:
        side = min(_SIDE, left)
        rows = _matrix(side).to(rows) @ rows.reshape(count, side, width // side)
        rows = rows.transpose(1, 2).reshape(count, width)
        left //= side
    return rows


@functools.cache
def _matrix(side: int) -> torch.Tensor:
    """``(side, side)`` float64, orthonormal."""
    made = torch.ones(1, 1, dtype=torch.float64)
    while len(made) < side:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made / math.sqrt(side)
