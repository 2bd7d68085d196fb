"""Differences as whole numbers in ``-127..127`` times a float32 scale for each block of 256.

**Error:** with ``m`` the largest magnitude in a number's block, ``|x - decoded(x)| <= m / 254 (1 + 2^-16) + 2^-142``:
half a step, what float32 rounds, and what a scale below the smallest normal number loses. 1.016 bytes a number before
packing.
"""

from __future__ import annotations

import numpy as np

from fed_diffmic.exchange.codecs.base import Codec, register_codec
from fed_diffmic.exchange.codecs.blocks import blocks_of, multiplied, quantised, scales_of
from fed_diffmic.exchange.payload import PayloadError

BLOCK, LEVELS = 256, 127


@register_codec("int8")
class Int8(Codec):
    """See the file's head."""

    def sizes(self, count: int) -> tuple[int]:
        """4 bytes a block and 1 a number."""
        return (4 * blocks_of(count, BLOCK) + count,)

    def encode(self, values: np.ndarray) -> bytes:
        """The scales, then the whole numbers."""
        whole, scales = quantised(values, BLOCK, LEVELS)
        return scales.astype("<f4").tobytes() + whole.tobytes()

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """Refuses what :meth:`encode` never writes: -128, scales that are negative or not finite."""
        head = 4 * blocks_of(count, BLOCK)
        whole = np.frombuffer(data, dtype=np.int8, offset=head)
        if (whole == -LEVELS - 1).any():
            raise PayloadError("a coded number is out of range")
        return multiplied(whole, scales_of(data[:head]), BLOCK)
