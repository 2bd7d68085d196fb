"""What many sites receive: packed and hashed once, and held as bytes only while it is being sent."""

from __future__ import annotations

from collections.abc import Mapping

from fed_diffmic.exchange.payload import Packed, Tensors, WireArray, pack


class Packing:
    """Tensors that many sites receive, packed while they are being sent and not while answers are awaited.

    In the place of a :class:`Packed`; the digest is computed once.

    Args:
        tensors: which must not change.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._packed: Packed | None = None
        self._named: tuple[str, int] | None = None

    @property
    def arrays(self) -> Mapping[str, WireArray]:
        """As they travel."""
        if self._packed is None:
            self._packed = pack(self._tensors, "" if self._named is None else self._named[0])
            self._named = (self._packed.digest, self._packed.nbytes)
        return self._packed.arrays

    @property
    def digest(self) -> str:
        """Of the tensors."""
        return self._facts()[0]

    @property
    def nbytes(self) -> int:
        """Of all of them together."""
        return self._facts()[1]

    def release(self) -> None:
        """Drop the bytes until they are sent again."""
        self._packed = None

    def _facts(self) -> tuple[str, int]:
        if self._named is None:
            _ = self.arrays
        assert self._named is not None
        return self._named
