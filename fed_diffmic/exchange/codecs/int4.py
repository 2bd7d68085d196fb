"""Differences as whole numbers in ``-7..7`` times a float32 scale for each block of 128, two in a byte.

**Error:** with ``m`` the largest magnitude in a number's block, ``|x - decoded(x)| <= m / 14 (1 + 2^-16) + 2^-142``:
half a step, what float32 rounds, and what a scale below the smallest normal number loses. 0.531 bytes a number before
packing.
"""

from __future__ import annotations

import numpy as np

from fed_diffmic.exchange.codecs.base import Codec, register_codec
from fed_diffmic.exchange.codecs.blocks import blocks_of, multiplied, quantised, scales_of
from fed_diffmic.exchange.payload import PayloadError

BLOCK, LEVELS = 128, 7
ZERO = 8
"""What stands for 0; 0 itself stands for nothing."""


@register_codec("int4")
class Int4(Codec):
    """See the file's head."""

    def sizes(self, count: int) -> tuple[int]:
        """4 bytes a block and half a byte a number, rounded up."""
        return (4 * blocks_of(count, BLOCK) + (count + 1) // 2,)

    def encode(self, values: np.ndarray) -> bytes:
        """The scales, then pairs of whole numbers, the first in the lower half."""
        whole, scales = quantised(values, BLOCK, LEVELS)
        halves = np.full(values.size + values.size % 2, ZERO, dtype=np.uint8)
        halves[: values.size] = whole + ZERO
        return scales.astype("<f4").tobytes() + (halves[0::2] | (halves[1::2] << 4)).tobytes()

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """Refuses what :meth:`encode` never writes: -8, scales that are negative or not finite, a filled last half."""
        head = 4 * blocks_of(count, BLOCK)
        pairs = np.frombuffer(data, dtype=np.uint8, offset=head)
        halves = np.empty(2 * pairs.size, dtype=np.uint8)
        halves[0::2], halves[1::2] = pairs & 0x0F, pairs >> 4
        if (halves == 0).any() or (halves[count:] != ZERO).any():
            raise PayloadError("a coded number is out of range")
        return multiplied(halves[:count].astype(np.int8) - np.int8(ZERO), scales_of(data[:head]), BLOCK)
