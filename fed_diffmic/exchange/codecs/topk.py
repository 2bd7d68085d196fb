"""The largest differences of each tensor and where they stand; the others wait (Aji and Heafield 2017, section 3).

Of ``n`` numbers the ``k = ceil(strategy.topk_share n)`` of largest magnitude cross as bfloat16 (of equal ones the
first), each with its distance from the one before in 1, 2 or 4 bytes.

**Error:** ``||x - decoded(x)||^2 <= (1 - k/n + 2^-16) ||x||^2 + n 2^-268`` for a tensor: what waits is at most
that share of the whole, and what crosses is off by the rounding of bfloat16. A single number that waits is off by all
of itself. 3 to 6 bytes a number that crosses before packing, most often 4.
"""

from __future__ import annotations

import math

import numpy as np

from fed_diffmic.exchange.codecs.base import Codec, joined, planes, register_codec
from fed_diffmic.exchange.codecs.bfloat16 import from_bfloat16, to_bfloat16
from fed_diffmic.exchange.payload import PayloadError

WIDTHS: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@register_codec("topk")
class TopK(Codec):
    """See the file's head."""

    def kept(self, count: int) -> int:
        """``k``: how many of ``count`` numbers cross, at least one."""
        return min(count, max(1, math.ceil(self.config.topk_share * count)))

    def sizes(self, count: int) -> tuple[int, ...]:
        """A byte for the width of distances, then ``k`` distances and ``k`` numbers."""
        return tuple(1 + self.kept(count) * (width + 2) for width in WIDTHS)

    def encode(self, values: np.ndarray) -> bytes:
        """Width, distances, numbers."""
        places = largest(values, self.kept(values.size))
        steps = np.diff(places, prepend=0)
        width = next(w for w in WIDTHS if int(steps.max()) < 2 ** (8 * w))
        return bytes([width]) + planes(steps.astype(WIDTHS[width])) + planes(to_bfloat16(values[places]))

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """Refuses places out of range or named twice, and numbers that are not finite."""
        kept, width = self.kept(count), data[0]
        if width not in WIDTHS or len(data) != 1 + kept * (width + 2):
            raise PayloadError("a coded tensor has another size than its numbers take")
        end = 1 + kept * width
        steps = joined(data[1:end], WIDTHS[width]).astype(np.int64)
        # 2^32 steps of 2^32 pass what 64 bits hold; so many numbers are in no tensor.
        places = np.cumsum(steps)
        if (steps[1:] < 1).any() or (places < 0).any() or places[-1] >= count:
            raise PayloadError("a place in a coded tensor is out of range")
        values = np.zeros(count, dtype=np.float32)
        values[places] = from_bfloat16(joined(data[end:], np.uint16))
        return values


def largest(values: np.ndarray, kept: int) -> np.ndarray:
    """Places of the ``kept`` largest magnitudes, rising; of equal magnitudes the first, whatever library sorts."""
    sizes = np.abs(values)
    least = np.partition(sizes, sizes.size - kept)[sizes.size - kept]
    chosen = sizes > least
    equal = np.flatnonzero(sizes == least)
    chosen[equal[: kept - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)
