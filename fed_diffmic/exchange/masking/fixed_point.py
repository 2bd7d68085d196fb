"""Bounded real numbers as integers of ``Z_2^b``: their sum is exact, whatever the order and grouping.

A number ``v`` with ``|v| <= bound`` becomes ``round(v * 2^f)``, in two's complement, as an unsigned word of ``b`` bits
(64 or 32). Sums of words wrap around; so long as ``summands * ceil(bound * 2^f) < 2^(b-1)`` the true sum lies in the
signed range and is read back exactly. That inequality is checked when a :class:`FixedPoint` is made, with integers.

Against the real sum the decoded one is off by at most ``summands / 2`` quanta (``2^-f``) an element with rounding to
the nearest, by less than ``summands`` quanta with stochastic rounding (whose expectation is the number itself), and by
one rounding of float64 where a sum has more than 53 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fed_diffmic.exchange.payload import PayloadError

WIDTHS = (32, 64)
_BLOCK = 1 << 16  # numbers encoded at a time, so that what is between stays in the processor's cache


class FixedPointError(PayloadError):
    """Numbers that the format cannot hold: not finite, beyond the bound, or too many to be added."""


@dataclass(frozen=True)
class FixedPoint:
    """One way to write numbers as words.

    Attributes:
        summands: how many words of one element are added at most.
        bound: the largest magnitude of a number, its weight included.
        fraction: ``f``: the quantum is ``2^-f`` (may be negative, for numbers that are large and coarse).
        bits: of a word, one of :data:`WIDTHS`.

    Raises:
        FixedPointError: a sum of that many could leave the words' range.
    """

    summands: int
    bound: float
    fraction: int
    bits: int = 64

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise FixedPointError("words have 32 or 64 bits")
        if self.summands < 1 or not (math.isfinite(self.bound) and self.bound > 0):
            raise FixedPointError("a sum needs one summand or more, and a bound that is finite and positive")
        if abs(self.fraction) > 900 or self.summands * self.largest >= 2 ** (self.bits - 1):
            raise FixedPointError(
                f"{self.summands} numbers up to {self.bound:g} in quanta of 2^{-self.fraction} could leave "
                f"{self.bits} bits: allow fewer fraction bits, a smaller bound or wider words"
            )

    @classmethod
    def finest(cls, summands: int, bound: float, bits: int = 64) -> FixedPoint:
        """The format of the smallest quantum that ``summands`` numbers up to ``bound`` leave room for.

        Raises:
            FixedPointError: there is none.
        """
        if summands < 1 or not (math.isfinite(bound) and bound > 0):
            raise FixedPointError("a sum needs one summand or more, and a bound that is finite and positive")
        most = (2 ** (bits - 1) - 1) // summands
        fraction = most.bit_length() - math.frexp(bound)[1]
        while most and math.ceil(Fraction(bound) * Fraction(2) ** fraction) > most:
            fraction -= 1
        return cls(summands, bound, fraction, bits)

    @property
    def largest(self) -> int:
        """The largest magnitude of a word as an integer, however it was rounded."""
        return math.ceil(Fraction(self.bound) * Fraction(2) ** self.fraction)

    @property
    def quantum(self) -> float:
        """What the integer one stands for."""
        return math.ldexp(1.0, -self.fraction)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of the words: unsigned, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    def encode(self, values: np.ndarray, weight: float = 1.0, draw: np.random.Generator | None = None) -> np.ndarray:
        """``weight * values`` as words; the product is taken in float64.

        Args:
            values: any shape, floating point or integers below 2^53.
            weight: of the site.
            draw: round stochastically (up with the probability of the fraction); none: to the nearest, half to even.

        Returns:
            Words of :attr:`dtype`, of the same shape.

        Raises:
            FixedPointError: a product is not finite or is larger than :attr:`bound`.
        """
        source = np.asarray(values)
        words = np.empty(source.shape, self.dtype)
        scale, signed = math.ldexp(1.0, self.fraction), f"<i{self.bits // 8}"
        for some, out in zip(_blocks(source), _blocks(words), strict=True):
            numbers = some.astype(np.float64)
            if weight != 1.0:
                numbers *= weight
            if not (numbers.max() <= self.bound and numbers.min() >= -self.bound):  # also where one is not a number
                raise FixedPointError("a number is not finite or is larger than the bound that was agreed")
            numbers *= scale  # by a power of two: exact
            if draw is None:
                np.rint(numbers, out=numbers)
            else:
                whole = np.floor(numbers)
                whole += draw.random(whole.shape) < numbers - whole
                numbers = whole
            out[...] = numbers.astype(signed).view(self.dtype)
        return words

    def decode(self, words: np.ndarray) -> np.ndarray:
        """What a sum of words stands for, in float64."""
        signed = np.asarray(words, self.dtype).view(f"<i{self.bits // 8}")
        return signed.astype(np.float64) * self.quantum


def add_words(total: np.ndarray, words: np.ndarray) -> None:
    """Add ``words`` to ``total`` in place; both of one width and shape.

    Raises:
        FixedPointError: they are not.
    """
    if total.dtype != words.dtype or total.shape != words.shape or total.dtype.kind != "u":
        raise FixedPointError("words of different widths or numbers cannot be added")
    np.add(total, words, out=total)


class ExactSum:
    """A sum that grows by one summand at a time; it holds one array, however many come.

    Args:
        form: of every summand.
        shape: of every summand.
    """

    def __init__(self, form: FixedPoint, shape: int | tuple[int, ...]) -> None:
        self.form = form
        self.count = 0
        self.words = np.zeros(shape, form.dtype)

    def add(self, words: np.ndarray) -> None:
        """One more summand.

        Raises:
            FixedPointError: it is of another width or shape, or one more than the format leaves room for.
        """
        if self.count >= self.form.summands:
            raise FixedPointError("there are more summands than the format leaves room for")
        add_words(self.words, words)
        self.count += 1

    def value(self) -> np.ndarray:
        """The sum so far, in float64."""
        return self.form.decode(self.words)


def leaves_room(words: np.ndarray, summands: int) -> bool:
    """Whether ``summands`` arrays whose words are no larger than these can be added without leaving the range."""
    bits = words.dtype.itemsize * 8
    signed = words.view(f"<i{words.dtype.itemsize}")
    largest = max(abs(int(signed.min(initial=0))), abs(int(signed.max(initial=0))))
    return summands * largest < 2 ** (bits - 1)


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of an array in C order; views where it is contiguous."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]
