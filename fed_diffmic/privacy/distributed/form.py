"""How the noised sum of a round is written as words: public, and the same at every site of the round.

A unit's gradient of length at most ``C`` is scaled so that ``C`` is ``quanta`` whole numbers, flattened
(:mod:`fed_diffmic.privacy.distributed.flattening`) and rounded
(:mod:`fed_diffmic.privacy.distributed.rounding`); the rounded vectors of a site's drawn units are added, and the site's
share of discrete Gaussian noise; the words are those sums modulo ``2^bits``. Masks are added modulo the same, so that
the sum of masked words is the sum of the words. A sum that left the range would wrap around: that costs accuracy and no
privacy, since it is what is made of the noised sum afterwards. A word of 32 bits holds the sum of a hundred thousand
units that all point one way, and a flattened sum is far from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

import numpy as np
import torch

from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.payload import text_digest
from fed_diffmic.privacy.distributed.discrete import FAR, MOST_DEVIATION, discrete_gaussian
from fed_diffmic.privacy.distributed.flattening import flatten, signs, unflatten, width_of
from fed_diffmic.privacy.distributed.rounding import round_rows, squared_bound
from fed_diffmic.privacy.randomness import Randomness

LEAST_DEVIATION = 8
"""The smallest standard deviation of a share, in whole numbers: from here on the sum of shares differs from one
discrete Gaussian by nothing that a computer's number can hold (:mod:`fed_diffmic.privacy.distributed.divergence`)."""

FINENESS = 16
"""``C`` is so many times ``sqrt(d)`` whole numbers: rounding then needs one part in a thousand more noise."""


@dataclass(frozen=True)
class NoisyForm:
    """The terms of one round's sum.

    Attributes:
        shapes: of each tensor that is summed, by name; they are laid end to end in the order of names.
        clip_norm: ``C``, largest L2 norm of a unit's gradient over all of them.
        share: standard deviation of the noise that each site adds, over what one unit can change in the sum.
        seed: of the round's signs; known to everybody.
        bits: of a word, 32 or 64.

    Raises:
        ConfigError: the noise is too small or too large to be whole numbers.
    """

    shapes: Mapping[str, tuple[int, ...]]
    clip_norm: float
    share: float
    seed: int
    bits: int = 32

    def __post_init__(self) -> None:
        if not LEAST_DEVIATION <= self.deviation <= MOST_DEVIATION:
            raise ConfigError(
                "strategy.noise_share",
                self.share,
                f"a share of {LEAST_DEVIATION} to {MOST_DEVIATION} whole numbers, which is "
                f"{_digits(LEAST_DEVIATION / self.sensitivity, ROUND_CEILING)} to "
                f"{_digits(MOST_DEVIATION / self.sensitivity, ROUND_FLOOR)}",
            )

    @property
    def numbers(self) -> int:
        """How many numbers are summed."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def width(self) -> int:
        """``d``: numbers of the flattened vector, and words of a site."""
        return width_of(self.numbers)

    @property
    def quanta(self) -> int:
        """Whole numbers that stand for ``C``."""
        return math.ceil(FINENESS * math.sqrt(self.width))

    @property
    def most_squared(self) -> int:
        """Largest squared L2 norm of what one unit adds to the sum."""
        return squared_bound(self.quanta, self.width)

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of what one unit adds to the sum, in whole numbers."""
        return math.sqrt(self.most_squared)

    @property
    def deviation(self) -> int:
        """Standard deviation of a site's share, in whole numbers."""
        return math.ceil(self.share * self.sensitivity)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of the words: unsigned, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def digest(self) -> str:
        """Names the terms: sites that answer under one digest add the same noise to the same numbers."""
        shapes = {name: list(map(str, shape)) for name, shape in self.shapes.items()}
        terms = {"norm": self.clip_norm, "share": self.share, "seed": self.seed, "bits": self.bits}
        return text_digest(canonical({"v": 1, "noisy": shapes, **terms}))

    def room(self, sites: int) -> int:
        """How large a number of a site's sum may be before its noise is added, so that so many sites' words fit.

        Noise is below :data:`~fed_diffmic.privacy.distributed.discrete.FAR` deviations, so no word is larger than
        ``(2^(bits - 1) - 1) / sites``, whatever is drawn. What is larger is cut to this number, which is
        public: a projection onto a box brings no two sums further apart, and leaves whole numbers whole. Refusing such
        words instead would tell something of this one site's.

        Raises:
            ConfigError: not even one unit's numbers fit.
        """
        most = (2 ** (self.bits - 1) - 1) // sites - FAR * self.deviation
        if most < self.sensitivity:
            raise ConfigError(
                "strategy.wide_words",
                "false" if self.bits == 32 else "true",
                f"true where {sites} sites add so much noise, or a smaller strategy.noise_share",
            )
        return most

    def rows(self, gradients: Mapping[str, torch.Tensor], random: Randomness) -> torch.Tensor:
        """``(U, d)`` int64: what each unit adds to the sum.

        Args:
            gradients: of each unit, clipped to ``C``, ``(U, *shape)`` by name.
            random: what rounding is drawn from.
        """
        flat = torch.cat([gradients[name].flatten(1) for name in sorted(self.shapes)], dim=1).float()
        scaled = torch.nn.functional.pad(flat, (0, self.width - flat.shape[1])) * (self.quanta / self.clip_norm)
        return round_rows(flatten(scaled, signs(self.seed, self.width)), self.most_squared, random)

    def noise(self, random: Randomness) -> np.ndarray:
        """``(d,)`` int64, a site's share."""
        return discrete_gaussian(random, self.deviation, self.width)

    def words(self, total: np.ndarray) -> np.ndarray:
        """Whole numbers modulo ``2^bits``. Whoever adds them looks whether they leave room for the others'."""
        return total.astype(np.int64).astype(self.dtype)

    def sums(self, words: np.ndarray) -> dict[str, np.ndarray]:
        """What a sum of words stands for: the noised sum of gradients, float64 by name."""
        signed = np.asarray(words, self.dtype).view(f"<i{self.bits // 8}").astype(np.float64)
        flat = unflatten(torch.from_numpy(signed)[None], signs(self.seed, self.width))[0].numpy()
        flat *= self.clip_norm / self.quanta
        found, start = {}, 0
        for name in sorted(self.shapes):
            size = math.prod(self.shapes[name])
            found[name] = flat[start : start + size].reshape(self.shapes[name])
            start += size
        return found


def _digits(value: float, rounding: str) -> str:
    """Three significant digits, rounded so that what is said to be allowed is."""
    return f"{Context(prec=3, rounding=rounding).create_decimal_from_float(value):g}"
