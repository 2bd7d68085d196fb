"""Random numbers that nobody else can know: noise and inclusion from the operating system's generator.

A coordinator that knew the seed of a site's noise could subtract it. So each private update draws a key of 256 bits
from the operating system (``os.urandom``) and expands it with ChaCha20 (RFC 8439); the key lives as long as the update,
is written nowhere and derived from nothing. The run's seed takes no part in it. One key makes 256 GiB (the cipher's
counter has 32 bits, of blocks of 64 bytes); a stream that needs more goes on under another key.

Not covered: normal deviates are made in float64 by inversion of 53-bit uniforms and added in the update's own
precision; attacks on the low bits of floating-point noise (Mironov 2012) are outside the guarantee.
"""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

_BLOCK = 1 << 16  # deviates that a processor makes at a time, for its cache
_KEY_BYTES = 1 << 38  # what one key may make: 2^32 blocks of 64 bytes (RFC 8439, section 2.3)
_TOP = 2**53 - 1  # the largest of the 53-bit numbers that a uniform is made of


class Randomness:
    """A stream of uniform, Bernoulli and normal numbers.

    Args:
        test_seed: none: from the operating system. A number makes the stream repeatable, for tests: whoever trains
            with it must say that nothing is guaranteed (``privacy.test_seed``).
        parts: tell streams of one ``test_seed`` apart; without effect otherwise.
    """

    def __init__(self, test_seed: int | None = None, *parts: str | int) -> None:
        self._test = None if test_seed is None else (test_seed, *parts)
        self._streams = 0
        self._renew()

    def _renew(self) -> None:
        """Begin the next stream, under a key of its own."""
        key = os.urandom(32) if self._test is None else _test_key(self._test, self._streams)
        self._streams += 1
        self._left = _KEY_BYTES
        self._stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def _bytes(self, count: int) -> bytes:
        """The next ``count`` bytes; where a key's stream ends, those of the next one follow."""
        parts = []
        while count:
            if not self._left:
                self._renew()
            taken = min(count, self._left)
            parts.append(self._stream.update(bytes(taken)))
            self._left -= taken
            count -= taken
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _words(self, count: int) -> np.ndarray:
        """``(count,)`` int64, 64 bits of the stream each."""
        return np.frombuffer(self._bytes(8 * count), dtype="<i8")

    def uniform(self, count: int) -> np.ndarray:
        """``(count,)`` float64, strictly inside (0, 1): ``(2 k + 1) / 2^54`` with ``k`` of 53 bits."""
        words = self._words(count).view("<u8") >> np.uint64(11)
        # 2^53 - 1 + 0.5 rounds to even, to 2^53: the largest uniform would be 1.
        return np.minimum((words.astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)

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
            words.bitwise_right_shift_(11).bitwise_and_(_TOP)
            # The upper half by symmetry: uniforms near 1 lie 2^-53 apart, which is coarse beyond seven deviations,
            # those near 0 are exact. So both tails are the same, and none ends at an infinite deviate.
            sign = words.bitwise_right_shift(52).neg_()  # -1 in the upper half, else 0
            part.copy_(words.bitwise_xor_(sign.bitwise_and(_TOP)))  # in the upper half 2^53 - 1 less the number
            torch.special.ndtri(part.add_(0.5).mul_(2.0**-53), out=part)
            part.mul_(sign.mul_(2).add_(1))
        return made

    def included(self, count: int, rate: float) -> np.ndarray:
        """Poisson sampling: positions of which each of ``count`` is taken with probability ``rate``, by itself."""
        return np.flatnonzero(self.uniform(count) < rate)

    def seed(self) -> int:
        """63 bits to seed another generator with (what needs to be random, and need not be secret afterwards)."""
        return int.from_bytes(self._bytes(8), "little") >> 1


def _test_key(names: tuple[str | int, ...], stream: int) -> bytes:
    """Key of one stream of a test seed: other names, or another stream of the same names, give another key."""
    parts = [str(part) for part in ("test", *names)]
    # Joined by NUL, ("a", "b") and the one name that holds a NUL between them would be the same.
    text = json.dumps(parts) if any("\0" in part for part in parts) else "\0".join(parts)
    key = hashlib.sha256(text.encode()).digest()
    return hashlib.sha256(key + stream.to_bytes(8, "little")).digest() if stream else key
