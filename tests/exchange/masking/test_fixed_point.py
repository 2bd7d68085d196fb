"""Fixed point: the sum does not depend on order or grouping, is as near as it says, and never leaves its range."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.exchange.masking import fixed_point
from fed_diffmic.exchange.masking.fixed_point import ExactSum, FixedPoint, FixedPointError, add_words, leaves_room

BOUNDS = st.floats(1e-6, 1e6)
WIDTHS = st.sampled_from([32, 64])


@st.composite
def summands(draw: st.DrawFn) -> tuple[FixedPoint, list[np.ndarray]]:
    """A format, and some arrays within its bound, its ends included."""
    count, length = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    form = FixedPoint.finest(count, draw(BOUNDS), draw(WIDTHS))
    shares = st.one_of(st.floats(-1, 1), st.sampled_from([-1.0, 1.0, 0.0, -0.0]))
    rows = draw(st.lists(st.lists(shares, min_size=length, max_size=length), min_size=count, max_size=count))
    return form, [np.clip(np.array(row) * form.bound, -form.bound, form.bound) for row in rows]


@given(summands(), st.randoms(use_true_random=False), st.booleans())
def test_any_order_and_grouping_gives_the_same_bits(given_: tuple, random: object, stochastic: bool) -> None:
    form, values = given_
    rng = np.random.default_rng(0) if stochastic else None
    words = [form.encode(value, draw=rng) for value in values]
    whole = ExactSum(form, words[0].shape)
    for word in words:
        whole.add(word)
    random.shuffle(words)  # type: ignore[attr-defined]
    cut = random.randrange(len(words) + 1)  # type: ignore[attr-defined]
    left, right = (np.zeros_like(words[0]) for _ in range(2))
    for word in words[:cut]:
        add_words(left, word)
    for word in words[cut:]:
        add_words(right, word)
    add_words(right, left)
    assert right.tobytes() == whole.words.tobytes() and whole.count == len(words)


@given(summands(), st.booleans())
def test_the_sum_is_as_near_as_it_says(given_: tuple, stochastic: bool) -> None:
    form, values = given_
    rng = np.random.default_rng(1) if stochastic else None
    total = ExactSum(form, values[0].shape)
    for value in values:
        total.add(form.encode(value, draw=rng))
    quantum = Fraction(2) ** -form.fraction
    allowed = len(values) * quantum * (Fraction(1) if stochastic else Fraction(1, 2))
    for index, found in enumerate(total.value()):
        exact = sum(Fraction(float(value[index])) for value in values)
        rounding = Fraction(math.ulp(float(found)))  # of the sum as a float64
        assert abs(Fraction(float(found)) - exact) <= allowed + rounding


@given(summands())
def test_no_sum_leaves_the_range_and_one_bit_more_could(given_: tuple) -> None:
    """Headroom: the worst sum is the plain one of Python's integers; the finest format is the finest there is."""
    form, _ = given_
    for sign in (-1, 1):
        total = ExactSum(form, 1)
        word = form.encode(np.array([sign * form.bound]))
        for _ in range(form.summands):
            total.add(word)
        signed = int(word.view(f"<i{form.bits // 8}")[0])
        assert int(total.words.view(f"<i{form.bits // 8}")[0]) == form.summands * signed
        assert abs(form.summands * signed) < 2 ** (form.bits - 1)
        with pytest.raises(FixedPointError):
            total.add(word)
    with pytest.raises(FixedPointError):
        FixedPoint(form.summands, form.bound, form.fraction + 1, form.bits)


@pytest.mark.parametrize(("summands_", "bound", "fraction", "bits", "fits"), [
    (1, 1.0, 62, 64, True), (1, 1.0, 63, 64, False), (2, 1.0, 61, 64, True), (2, 1.0, 62, 64, False),
    (3, 1.0, 61, 64, True), (4, 1.0, 61, 64, False), (1, 0.75, 31, 32, True), (1, 1.0, 31, 32, False),
    (2, 2.0**31 - 1, 0, 32, False), (1, 2.0**31 - 1, 0, 32, True), (1, 2.0**40, -10, 32, True),
    (1, 2.0**40, -9, 32, False),
])  # fmt: skip
def test_the_headroom_by_hand(summands_: int, bound: float, fraction: int, bits: int, fits: bool) -> None:
    if fits:
        assert FixedPoint(summands_, bound, fraction, bits).quantum == 2.0**-fraction
        return
    with pytest.raises(FixedPointError):
        FixedPoint(summands_, bound, fraction, bits)


def test_words_by_hand() -> None:
    form = FixedPoint(2, 4.0, 1, 32)  # quanta of a half
    words = form.encode(np.array([0.0, 0.25, 0.75, -0.25, -1.5, 2.0], np.float32), weight=2.0)
    assert words.dtype == np.dtype("<u4")
    assert words.view("<i4").tolist() == [0, 1, 3, -1, -6, 8]
    assert form.encode(np.array([0.25, 0.75])).tolist() == [0, 2]  # halves to even
    assert form.decode(words).tolist() == [0.0, 0.5, 1.5, -0.5, -3.0, 4.0]
    assert form.encode(np.array(1.5)).shape == () and form.encode(np.zeros((2, 0))).shape == (2, 0)
    assert form.encode(np.arange(6.0).reshape(2, 3).T / 2).view("<i4").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_blocks_are_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    form, values = FixedPoint.finest(3, 5.0, 32), np.random.default_rng(0).uniform(-5, 5, (7, 11))
    whole = form.encode(values)
    monkeypatch.setattr(fixed_point, "_BLOCK", 10)
    assert (form.encode(values) == whole).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.0 + 1e-15, -1.1])
def test_what_is_beyond_the_bound_is_refused_not_cut(value: float) -> None:
    for bits in (32, 64):
        with pytest.raises(FixedPointError):
            FixedPoint.finest(3, 1.0, bits).encode(np.array([0.0, value]))


def test_stochastic_rounding_is_fair() -> None:
    """The mean over many draws is the number itself; a number on the grid is never moved."""
    form, rng = FixedPoint(1, 2.0, 0, 64), np.random.default_rng(3)
    for number in (0.25, -0.25, 1.9, -1.1):
        drawn = form.decode(form.encode(np.full(40_000, number), draw=rng))
        assert set(drawn) == {math.floor(number), math.ceil(number)}
        assert abs(drawn.mean() - number) < 5 * 0.5 / math.sqrt(40_000)
    assert set(form.encode(np.full(1000, 2.0), draw=rng).tolist()) == {2}


def test_a_format_that_means_nothing_is_refused() -> None:
    for wrong in ({"summands": 0}, {"bound": 0.0}, {"bound": math.inf}, {"bits": 16}, {"fraction": 2000}):
        with pytest.raises(FixedPointError):
            FixedPoint(**{"summands": 1, "bound": 1.0, "fraction": 1, "bits": 64, **wrong})
    with pytest.raises(FixedPointError):
        FixedPoint.finest(2**31, 1.0, 32)
    with pytest.raises(FixedPointError):
        FixedPoint.finest(0, 1.0)


def test_room_is_judged_by_the_words_themselves() -> None:
    top = np.array([2**29 - 1, 0], "<u4")
    assert leaves_room(top, 4) and not leaves_room(top + np.uint32(1), 4)
    lowest = np.array([-(2**31)], "<i4").view("<u4")
    assert not leaves_room(lowest, 1) and leaves_room(np.zeros(0, "<u8"), 9)


def test_words_of_two_widths_or_shapes_are_not_added() -> None:
    total = np.zeros(2, "<u4")
    for words in (np.zeros(2, "<u8"), np.zeros(3, "<u4"), np.zeros(2, "<i4")):
        with pytest.raises(FixedPointError):
            add_words(total, words)
