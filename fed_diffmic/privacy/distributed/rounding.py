"""Rounding to whole numbers that cannot lengthen a vector by more than is accounted for.

Stochastic rounding keeps the mean, but may add up to ``sqrt(d)`` to a vector's length. So it is conditional (Kairouz,
Liu and Steinke 2021, section 4.1 and algorithm 1): it is drawn again until the rounded vector is no longer than

    min(c + sqrt(d), sqrt(c^2 + d/4 + sqrt(2 ln(1/beta)) (c + sqrt(d)/2)))

with ``c`` the length before and ``beta = exp(-1/2)``, which at least one draw of three and in truth nearly every draw
is. The bound is looked at on the whole numbers themselves, so that it holds whatever floating point did before.
A vector that stays too long is rounded towards zero, which lengthens nothing.
"""

from __future__ import annotations

import math

import torch

from fed_diffmic.privacy.randomness import Randomness

_TRIES = 16


def squared_bound(length: float, width: int) -> int:
    """The largest squared L2 norm of a rounded vector of ``d`` coordinates that was of at most ``length``."""
    root = math.sqrt(width)
    longest = (length + root) ** 2
    likely = length**2 + width / 4 + length + root / 2  # beta = exp(-1/2): sqrt(2 ln(1/beta)) = 1
    return math.floor(min(longest, likely))


def round_rows(rows: torch.Tensor, most: int, random: Randomness) -> torch.Tensor:
    """``(U, d)`` int64: each row rounded up or down at random, to a squared L2 norm of at most ``most``.

    A row that is not finite becomes zero.
    """
    rows = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    found = torch.zeros_like(rows, dtype=torch.int64)
    going = torch.arange(len(rows), device=rows.device)
    for _ in range(_TRIES):
        if not len(going):
            return found
        part = rows[going]
        floor = part.floor()
        chance = torch.from_numpy(random.uniform(part.numel())).view(part.shape).to(part.device)
        made = (floor + (chance < part - floor)).to(torch.int64)
        short = made.square().sum(dim=1) <= most
        found[going[short]] = made[short]
        going = going[~short]
    made = rows[going].to(torch.int64)  # towards zero
    found[going] = made * (made.square().sum(dim=1) <= most).unsqueeze(1)
    return found
