"""Random numbers that nobody else can know: noise and inclusion from the operating system's generator.

A coordinator that knew the seed of a site's noise could subtract it. So each private update draws a key of 256 bits
from the operating system (``os.urandom``) and expands it with ChaCha20 (RFC 8439); the key lives as long as the update,
is written nowhere and derived from nothing. The run's seed takes no part in it.

Not covered: normal deviates are made in float64 by inversion of 53-bit uniforms and added in the update's own
precision; attacks on the low bits of floating-point noise (Mironov 2012) are outside the guarantee.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

_BLOCK = 1 << 16  # deviates that a processor makes at a time, for its cache


class Randomness:
    """A stream of uniform, Bernoulli and normal numbers.

    Args:
        test_seed: none: from the operating system. A number makes the stream repeatable, for tests: whoever trains
            with it must say that nothing is guaranteed (``privacy.test_seed``).
        parts: tell streams of one ``test_seed`` apart; without effect otherwise.
    """

    def __init__(self, test_seed: int | None = None, *parts: str | int) -> None:
        if test_seed is None:
            key = os.urandom(32)
        else:
            key = hashlib.sha256("\0".join(map(str, ("test", test_seed, *parts))).encode()).digest()
        self._stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def _words(self, count: int) -> np.ndarray:
        """``(count,)`` int64, 64 bits of the stream each."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<i8")

    def uniform(self, count: int) -> np.ndarray:
        """``(count,)`` float64, strictly inside (0, 1): ``(2 k + 1) / 2^54`` with ``k`` of 53 bits."""
        words = self._words(count).view("<u8") >> np.uint64(11)
        return (words.astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """``(count,)`` float64 standard normal deviates on ``device``, by inversion.

        Only the stream is always the processor's work: of the time that a hundred million deviates take it, which a
        large network needs at each step, inversion is the larger part.
        """
        made = torch.empty(count, dtype=torch.float64, device=device)
        block = _BLOCK if made.device.type == "cpu" else 64 * _BLOCK
        for start in range(0, count, block):
            part = made[start : start + block]
            words = torch.from_numpy(self._words(len(part)).astype(np.int64)).to(device)
            # torch shifts the sign in from the left; the mask leaves the 53 bits that `uniform` takes.
            part.copy_(words.bitwise_right_shift_(11).bitwise_and_(2**53 - 1))
            # 0.5 + 2^-54 rounds to even: the largest uniform would be 1 and its deviate infinite.
            torch.special.ndtri(part.add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-53), out=part)
        return made

    def included(self, count: int, rate: float) -> np.ndarray:
        """Poisson sampling: positions of which each of ``count`` is taken with probability ``rate``, by itself."""
        return np.flatnonzero(self.uniform(count) < rate)

    def seed(self) -> int:
        """63 bits to seed another generator with (what needs to be random, and need not be secret afterwards)."""
        return int.from_bytes(self._stream.update(bytes(8)), "little") >> 1
