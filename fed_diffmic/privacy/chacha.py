"""ChaCha20 (RFC 8439) as operations on tensors of integers: the processor's stream, bit for bit, made where it is used.

A large network's noise on a card waited for the stream to be made on the processor and sent over. Here each of the four
rows of the state is one tensor over all blocks, and a quarter round works on four columns at once. On a processor the
library's own cipher is an order of magnitude faster.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

BLOCK_BYTES = 64
_CONSTANTS = struct.unpack("<4i", b"expand 32-byte k")
_DOUBLE_ROUNDS = 10


def keystream(
    key: bytes, first: int, blocks: int, device: torch.device | str = "cpu", nonce: bytes = bytes(12)
) -> Tensor:
    """Blocks of the key's stream.

    Args:
        key: 32 bytes.
        first: number of the first block; the last may be ``2^32 - 1``.
        blocks: how many.
        nonce: 12 bytes.

    Returns:
        ``(blocks, 16)`` int32, the words of each block in order.
    """
    counter = torch.arange(first, first + blocks, dtype=torch.int64, device=device)
    zeros = torch.zeros(blocks, dtype=torch.int32, device=device)
    counter = torch.where(counter < 2**31, counter, counter - 2**32).to(torch.int32)

    def row(words: tuple[int, ...]) -> Tensor:
        return torch.stack([zeros + word for word in words])

    keys = struct.unpack("<8i", key)
    start = [row(_CONSTANTS), row(keys[:4]), row(keys[4:]), row((0, *struct.unpack("<3i", nonce)))]
    start[3][0] = counter
    a, b, c, d = start
    for _ in range(_DOUBLE_ROUNDS):
        a, b, c, d = _quarter(a, b, c, d)
        a, b, c, d = _quarter(a, b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0))
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    mixed = [end + begin for end, begin in zip((a, b, c, d), start, strict=True)]
    return torch.cat(mixed).T.contiguous()


def _quarter(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The quarter round (section 2.1) of every column; sums wrap around at 32 bits."""
    a = a + b
    d = _rotated(d ^ a, 16)
    c = c + d
    b = _rotated(b ^ c, 12)
    a = a + b
    d = _rotated(d ^ a, 8)
    c = c + d
    return a, _rotated(b ^ c, 7), c, d


def _rotated(x: Tensor, left: int) -> Tensor:
    # torch shifts the sign in from the left; the mask leaves what was shifted out on the other side.
    return (x << left) | ((x >> (32 - left)) & ((1 << left) - 1))
