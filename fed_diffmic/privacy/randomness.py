"""Random numbers that nobody else can know: noise and inclusion from the operating system's generator.

A coordinator that knew the seed of a site's noise could subtract it. So each private update draws a key of 256 bits
from the operating system (``os.urandom``) and expands it with ChaCha20 (RFC 8439); the key lives as long as the update,
is written nowhere and derived from nothing. The run's seed takes no part in it. One key makes 256 GiB (the cipher's
counter has 32 bits, of blocks of 64 bytes); a stream that needs more goes on under another key.

Not covered: normal deviates are made in float64 by inversion of 53-bit uniforms and added in the update's own
precision; attacks on the low bits of floating-point noise (Mironov 2012) are outside the guarantee. (In float32 the
inversion would take a third less time, and noise would lie on a grid as coarse as the update it hides.)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from weakref import WeakSet

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fed_diffmic.privacy.chacha import BLOCK_BYTES, keystream

_BLOCK = 1 << 15  # deviates that a processor makes at a time, for its cache
_DEVICE_BLOCK = 1 << 22
_KEY_BYTES = 1 << 38  # what one key may make: 2^32 blocks of 64 bytes (RFC 8439, section 2.3)
_MOST_WORD = 2**64 - 1
_HALF = 2**52  # of the 53-bit numbers that a uniform is made of
_TAIL = 1 - 2.0**-20
"""Of ``2 u - 1``: beyond it, at 4.9 deviations, a number near 1 no longer tells to eleven digits how near it is."""


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
        _LIVE.add(self)

    def _renew(self) -> None:
        """Begin the next stream, under a key of its own."""
        self._key = os.urandom(32) if self._test is None else _test_key(self._test, self._streams)
        self._streams += 1
        self._left = _KEY_BYTES
        self._stream = _cipher(self._key, 0)

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

    def _fill(self, words: np.ndarray, zeros: np.ndarray) -> None:
        """The same, into an array of int64; ``zeros`` are as many bytes, which the cipher works on."""
        if self._left < words.nbytes:
            words[:] = self._words(len(words))
        else:
            self._stream.update_into(zeros.data, words.view(np.uint8).data)
            self._left -= words.nbytes

    def _words_on(self, count: int, device: torch.device) -> torch.Tensor:
        """The same, made on a device: what the processor would make next, bit for bit."""
        parts = []
        while count:
            if not self._left:
                self._renew()
            taken, start = min(count, self._left // 8), _KEY_BYTES - self._left
            first, skipped = divmod(start, BLOCK_BYTES)
            blocks = -(-(skipped + 8 * taken) // BLOCK_BYTES)
            made = keystream(self._key, first, blocks, device).view(torch.int64).flatten()
            parts.append(made[skipped // 8 : skipped // 8 + taken])
            self._left -= 8 * taken
            count -= taken
            self._stream = _cipher(self._key, start + 8 * taken)
        return torch.cat(parts)

    def uniform(self, count: int) -> np.ndarray:
        """``(count,)`` float64, strictly inside (0, 1): ``(2 k + 1) / 2^54`` with ``k`` of 53 bits."""
        words = self._words(count).view("<u8") >> np.uint64(11)
        # 2^53 - 1 + 0.5 rounds to even, to 2^53: the largest uniform would be 1.
        return np.minimum((words.astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)

    def below(self, bounds: np.ndarray) -> np.ndarray:
        """Whole numbers, each uniform below its bound (``(n,)``, from 1 to 2^63), uint64, exactly.

        Words beyond the last multiple of a bound are drawn again: without that small numbers would be likelier.
        """
        bounds = bounds.astype(np.uint64)
        found = self._words(len(bounds)).view("<u8").astype(np.uint64)
        last = np.uint64(_MOST_WORD) - (np.uint64(_MOST_WORD) % bounds + np.uint64(1)) % bounds
        again = np.flatnonzero(found > last)
        while len(again):
            found[again] = self._words(len(again)).view("<u8")
            again = again[found[again] > last[again]]
        return found % bounds

    def normal(self, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """``(count,)`` float64 standard normal deviates on ``device``, by inversion. A card makes the stream itself."""
        made = torch.empty(count, dtype=torch.float64, device=device)
        if made.device.type != "cpu":
            for start in range(0, count, _DEVICE_BLOCK):
                part = made[start : start + _DEVICE_BLOCK]
                _inverted(self._words_on(len(part), made.device), part)
            return made
        words, zeros = np.empty(min(count, _BLOCK), dtype="<i8"), np.zeros(8 * min(count, _BLOCK), dtype=np.uint8)
        for start in range(0, count, _BLOCK):
            part = made[start : start + _BLOCK]
            taken = words[: len(part)]
            self._fill(taken, zeros[: taken.nbytes])
            _inverted(torch.from_numpy(taken), part)
        return made

    def included(self, count: int, rate: float) -> np.ndarray:
        """Poisson sampling: positions of which each of ``count`` is taken with probability ``rate``, by itself."""
        return np.flatnonzero(self.uniform(count) < rate)

    def seed(self) -> int:
        """63 bits to seed another generator with (what needs to be random, and need not be secret afterwards)."""
        return int.from_bytes(self._bytes(8), "little") >> 1


_LIVE: WeakSet[Randomness] = WeakSet()


def _after_fork() -> None:
    """In a process that was split off: what goes on there under the same key would be the parent's noise again."""
    for stream in list(_LIVE):
        if stream._test is None:
            stream._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _inverted(words: torch.Tensor, made: torch.Tensor) -> None:
    """Normal deviates of 64 bits each, of which 53 count, into ``made``; ``words`` are used up."""
    # The 53-bit number less its half: uniforms about 0. Both tails are the same, and none ends at infinity.
    words.bitwise_xor_(-(2**63)).bitwise_right_shift_(11)
    made.copy_(words).add_(0.5).mul_(1 / _HALF)
    low, high = torch.aminmax(made)
    outside = (made.abs() > _TAIL).nonzero().squeeze(1) if max(-float(low), float(high)) > _TAIL else None
    torch.erfinv(made, out=made).mul_(math.sqrt(2))
    if outside is not None:
        far = words[outside]
        # Of the nearer end: uniforms near 0 are exact, those near 1 lie 2^-53 apart.
        below = torch.where(far < 0, far + _HALF, _HALF - 1 - far).double().add_(0.5).mul_(0.5 / _HALF)
        made[outside] = torch.special.ndtri(below) * torch.where(far < 0, 1.0, -1.0).double()


def _cipher(key: bytes, position: int) -> CipherContext:
    """The key's stream from a byte on."""
    block, skipped = divmod(position, BLOCK_BYTES)
    stream = Cipher(ChaCha20(key, (block % 2**32).to_bytes(4, "little") + bytes(12)), mode=None).encryptor()
    stream.update(bytes(skipped))
    return stream


def _test_key(names: tuple[str | int, ...], stream: int) -> bytes:
    """Key of one stream of a test seed: other names, or another stream of the same names, give another key."""
    parts = [str(part) for part in ("test", *names)]
    # Joined by NUL, ("a", "b") and the one name that holds a NUL between them would be the same.
    text = json.dumps(parts) if any("\0" in part for part in parts) else "\0".join(parts)
    key = hashlib.sha256(text.encode()).digest()
    return hashlib.sha256(key + stream.to_bytes(8, "little")).digest() if stream else key
