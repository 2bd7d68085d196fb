"""The stream that a card makes is that of the processor, bit for bit, and of the standard's own examples."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.privacy import randomness
from fed_diffmic.privacy.chacha import keystream
from fed_diffmic.privacy.randomness import Randomness

KEY = bytes(range(32))

# RFC 8439, sections 2.3.2 and 2.4.2, and appendix A.1, test vectors 1, 3 and 4.
VECTORS = [
    (
        KEY, 1, bytes.fromhex("000000090000004a00000000"),
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    (
        KEY, 1, bytes.fromhex("000000000000004a00000000"),
        "224f51f3401bd9e12fde276fb8631ded8c131f823d2c06e27e4fcaec9ef3cf78"
        "8a3b0aa372600a92b57974cded2b9334794cba40c63e34cdea212c4cf07d41b7",
    ),
    (
        bytes(32), 0, bytes(12),
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    (
        bytes(31) + b"\1", 1, bytes(12),
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("key", "block", "nonce", "words"), VECTORS)
def test_the_standards_examples(key, block, nonce, words):
    assert keystream(key, block, 1, "cpu", nonce).numpy().astype("<i4").tobytes().hex() == words


@settings(max_examples=10, deadline=None)
@given(
    key=st.binary(min_size=32, max_size=32),
    first=st.one_of(st.integers(0, 1000), st.integers(2**31 - 3, 2**31 + 3), st.just(2**32 - 5)),
)
def test_any_blocks_are_those_of_the_processors_cipher(key, first):
    wanted = randomness._cipher(key, 64 * first).update(bytes(64 * 5))
    assert keystream(key, first, 5).numpy().astype("<i4").tobytes() == wanted


def test_what_a_card_makes_is_what_the_processor_would_have_made_next(monkeypatch):
    """By turns, from any place in a block, and across the end of a key."""
    monkeypatch.setattr(randomness, "_KEY_BYTES", 64 * 5 + 8 * 3)
    whole, turns = Randomness(3), Randomness(3)
    wanted = whole._words(200)
    parts, card = [], False
    for count in (3, 8, 1, 17, 40, 0, 9, 30, 2, 90):
        part = turns._words_on(count, torch.device("cpu")).numpy() if card and count else turns._words(count)
        parts.append(part)
        card = not card
    assert turns._streams == whole._streams == 5
    assert np.array_equal(np.concatenate(parts), wanted)


@pytest.mark.parametrize("at", [0.0, 1e-9, 0.3, 1.0, 2.88, 4.0, 4.89, 4.91, 5.0, 6.0, 7.0])
def test_deviates_are_the_quantiles_to_eleven_digits(at):
    """Against fifty digits: the 53-bit number next to a deviate, on both sides."""
    with mpmath.workdps(50):
        number = int(mpmath.ncdf(at) * 2**53)
        numbers = [number, 2**53 - 1 - number]
        exact = [mpmath.sqrt(2) * mpmath.erfinv(2 * (mpmath.mpf(n) + 0.5) / 2**53 - 1) for n in numbers]
    words = torch.from_numpy((np.array(numbers, dtype=np.uint64) << np.uint64(11)).view(np.int64))
    made = torch.empty(2, dtype=torch.float64)
    randomness._inverted(words, made)
    np.testing.assert_allclose(made.numpy(), np.array(exact, dtype=np.float64), rtol=1e-11, atol=1e-15)


def test_tails_are_as_heavy_as_they_should_be():
    """Of four million deviates those beyond 3, 4 and 4.9 deviations: within six deviations of their numbers."""
    count = 1 << 22
    size = Randomness(11).normal(count).abs()
    for at in (3.0, 4.0, 4.9):
        expected = count * float(mpmath.erfc(at / mpmath.sqrt(2)))
        assert abs(int((size > at).sum()) - expected) <= 6 * expected**0.5 + 1
