"""Masks: streams of words that look random to whoever lacks their key, added to and taken from words.

A stream is the key stream of AES-256 in counter mode, from counter 0 on: each key is derived for one stream of one
attempt (:mod:`fed_diffmic.exchange.masking.keys`), so no counter is ever used twice under a key. AES-CTR and not
ChaCha20, because processors have instructions for it: about four times as fast here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

BLOCK = 1 << 18  # bytes at a time: the words and a piece of each stream stay in the processor's cache
_COUNTER = bytes(16)


def apply_masks(words: np.ndarray, added: Iterable[bytes], taken: Iterable[bytes]) -> None:
    """Add some streams to words, and take others from them, in place and modulo their width.

    Args:
        words: one-dimensional, contiguous, unsigned and little-endian.
        added: keys (32 bytes each) of the streams that are added.
        taken: keys of those that are subtracted.

    Raises:
        ValueError: the words are not of that form.
    """
    if words.ndim != 1 or not words.flags.c_contiguous or words.dtype not in (np.dtype("<u4"), np.dtype("<u8")):
        raise ValueError("masks are added to a row of unsigned words")
    streams = [(np.add, _stream(key)) for key in added] + [(np.subtract, _stream(key)) for key in taken]
    zeros, room = bytes(BLOCK), bytearray(BLOCK + 16)  # update_into asks for a block of the cipher more than it fills
    step = BLOCK // words.dtype.itemsize
    mask = np.frombuffer(room, words.dtype, count=step)
    for start in range(0, words.size, step):
        part = words[start : start + step]
        for combine, stream in streams:
            stream.update_into(zeros[: part.nbytes] if part.nbytes < BLOCK else zeros, room)
            combine(part, mask[: part.size], out=part)


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(_COUNTER)).encryptor()
