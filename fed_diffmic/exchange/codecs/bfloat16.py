"""Differences as bfloat16: the upper half of a float32, rounded to nearest, ties to even.

**Error:** ``|x - decoded(x)| <= 2^-8 |x| + 2^-134`` for each number (the second term: below the smallest
normal number). 2 bytes a number before packing.
"""

from __future__ import annotations

import numpy as np

from fed_diffmic.exchange.codecs.base import Codec, joined, planes, register_codec
from fed_diffmic.exchange.payload import PayloadError


@register_codec("bfloat16")
class Bfloat16(Codec):
    """See the file's head."""

    def sizes(self, count: int) -> tuple[int]:
        """2 bytes a number."""
        return (2 * count,)

    def encode(self, values: np.ndarray) -> bytes:
        """All lower bytes, then all upper ones."""
        return planes(to_bfloat16(values))

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """Refuses infinities and not-a-number."""
        return from_bfloat16(joined(data, np.uint16))


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Upper halves ``(count,)``, uint16, of float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(halves: np.ndarray) -> np.ndarray:
    """The float32 numbers whose upper halves these are.

    Raises:
        PayloadError: one of them is not finite.
    """
    values = (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not np.isfinite(values).all():
        raise PayloadError("a coded number is not finite")
    return values
