"""Tensors cross whole, in their own type.

**Error:** none. 4 bytes a number.
"""

from __future__ import annotations

import numpy as np

from fed_diffmic.exchange.codecs.base import Codec, register_codec
from fed_diffmic.exchange.payload import PayloadError


@register_codec("float32")
class Float32(Codec):
    """Codes nothing: :mod:`fed_diffmic.exchange.codecs.sets` lets every tensor cross as it is."""

    lossy = False

    def sizes(self, count: int) -> tuple[int]:
        """4 bytes a number."""
        return (4 * count,)

    def encode(self, values: np.ndarray) -> bytes:
        """Little-endian."""
        return values.astype("<f4").tobytes()

    def decode(self, data: bytes, count: int) -> np.ndarray:
        """The same numbers."""
        values = np.frombuffer(data, dtype="<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise PayloadError("a coded number is not finite")
        return values
