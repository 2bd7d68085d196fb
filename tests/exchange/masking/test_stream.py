"""Masks: what is added and taken again is gone; the stream is AES in counter mode, and looks random."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fed_diffmic.exchange.masking import stream
from fed_diffmic.exchange.masking.stream import apply_masks

ONE, TWO = bytes(range(32)), bytes(range(32, 64))


def slow_stream(key: bytes, words: int, dtype: str) -> np.ndarray:
    """Each block by itself: AES of the counter."""
    cipher, size = Cipher(algorithms.AES(key), modes.ECB()), np.dtype(dtype).itemsize
    blocks = -(-words * size // 16)
    data = b"".join(cipher.encryptor().update(counter.to_bytes(16, "big")) for counter in range(blocks))
    return np.frombuffer(data[: words * size], dtype)


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("length", [0, 1, 3, 63, 64, 65, 130])
def test_the_stream_is_that_of_the_slow_twin(dtype: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 256)
    words = np.arange(length).astype(dtype)
    masked = words.copy()
    apply_masks(masked, [ONE], [TWO])
    expected = words + slow_stream(ONE, length, dtype) - slow_stream(TWO, length, dtype)
    assert masked.tobytes() == expected.tobytes()
    apply_masks(masked, [TWO], [ONE])
    assert masked.tobytes() == words.tobytes()


def test_the_stream_passes_a_chi_square_test() -> None:
    words = np.zeros(1 << 17, "<u8")
    apply_masks(words, [ONE], [])
    counts = np.bincount(words.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert len(np.unique(words)) == len(words)


def test_only_a_row_of_words_is_masked() -> None:
    for wrong in (np.zeros((2, 2), "<u4"), np.zeros(4, "<i8"), np.zeros(4, "<f8"), np.zeros(8, "<u4")[::2]):
        with pytest.raises(ValueError, match="row of unsigned words"):
            apply_masks(wrong, [ONE], [])
