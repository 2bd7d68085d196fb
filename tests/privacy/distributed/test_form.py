"""Faults seen: a rotation that is not turned back, rounding that lengthens, sums that wrap, masks that change a sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as reference

from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange.masking.fixed_point import sum_fits
from fed_diffmic.privacy.distributed.discrete import FAR
from fed_diffmic.privacy.distributed.flattening import flatten, hadamard, signs, unflatten, width_of
from fed_diffmic.privacy.distributed.form import LEAST_DEVIATION, NoisyForm
from fed_diffmic.privacy.distributed.rounding import round_rows, squared_bound
from fed_diffmic.privacy.randomness import Randomness

SHAPES = {"b": (3,), "a": (5, 7)}


def form(**more: object) -> NoisyForm:
    return NoisyForm(**{"shapes": SHAPES, "clip_norm": 2.0, "share": 1.0, "seed": 3, **more})


def unit_rows(count: int, length: float, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(count, 38, generator=generator)
    flat *= length / flat.norm(dim=1, keepdim=True)
    return {"a": flat[:, :35].unflatten(1, (5, 7)), "b": flat[:, 35:]}


@pytest.mark.parametrize("width", [1, 2, 64, 256, 1024])
def test_the_fast_rotation_is_the_matrix(width: int) -> None:
    rows = torch.randn(3, width, dtype=torch.float64)
    slow = rows @ torch.from_numpy(reference(width).astype(np.float64)) / math.sqrt(width)
    assert torch.allclose(hadamard(rows), slow, atol=1e-12)


def test_flattening_keeps_lengths_spreads_one_coordinate_and_is_turned_back() -> None:
    rows = torch.zeros(1, 4096, dtype=torch.float64)
    rows[0, 17] = 5.0
    sign = signs(9, 4096)
    flat = flatten(rows, sign)
    assert flat.norm() == pytest.approx(5.0)
    assert flat.abs().max() == pytest.approx(5.0 / 64)
    assert torch.allclose(unflatten(flat, sign), rows, atol=1e-12)
    assert not torch.equal(signs(9, 64), signs(10, 64))
    assert [width_of(n) for n in (1, 2, 3, 85_000, 476_000)] == [1, 2, 4, 1 << 17, 1 << 19]


def test_rounding_never_lengthens_a_row_beyond_its_bound() -> None:
    # Halves everywhere: without the condition one row of forty would be longer.
    rows = torch.full((1500, 256), 0.5)
    most = squared_bound(8.0, 256)
    found = round_rows(rows, most, Randomness(4, "rounding"))
    assert int(found.square().sum(dim=1).max()) <= most
    plain = (torch.rand(1500, 256, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    assert int(plain.square().sum(dim=1).max()) > most  # what is refused here


@given(st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=32), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_rounding_is_to_a_neighbour_within_the_bound(values: list[float], seed: int) -> None:
    row = torch.tensor([values])
    most = squared_bound(float(row.norm()), row.shape[1])
    found = round_rows(row, most, Randomness(seed, "near"))
    assert int(found.square().sum()) <= most
    assert bool(((found - row).abs() < 1).all())


def test_rounding_keeps_the_mean_and_takes_nothing_that_is_not_finite() -> None:
    rows = torch.tensor([[0.25, -3.75, 7.0]]).repeat(20_000, 1)
    mean = round_rows(rows, 10_000, Randomness(5, "mean")).double().mean(dim=0)
    assert torch.allclose(mean, torch.tensor([0.25, -3.75, 7.0], dtype=torch.float64), atol=0.02)
    broken = round_rows(torch.tensor([[float("nan"), 1.0], [float("inf"), 2.0]]), 100, Randomness())
    assert broken[:, 0].tolist() == [0, 0]


def test_a_row_that_stays_too_long_is_rounded_towards_zero_or_left_out() -> None:
    found = round_rows(torch.tensor([[2.9, -2.9], [50.0, 0.0]]), 8, Randomness(6))
    assert found.tolist() == [[2, -2], [0, 0]]


def test_sums_of_words_are_read_back_as_the_sum_of_gradients() -> None:
    one, units = form(), unit_rows(6, 2.0)
    rows = one.rows(units, Randomness(7, "rows"))
    assert int(rows.square().sum(dim=1).max()) <= one.most_squared
    decoded = one.sums(one.words(rows.sum(dim=0).numpy()))
    quantum = one.clip_norm / one.quanta
    for name, value in units.items():
        assert decoded[name].shape == SHAPES[name]
        # Six roundings of a standard deviation of at most half a quantum each, turned back.
        assert np.abs(decoded[name] - value.sum(dim=0).numpy()).max() < 6 * math.sqrt(6) * 0.5 * quantum
    assert sorted(decoded) == sorted(SHAPES)


def test_negative_sums_and_a_wrapped_range_are_read_as_they_are() -> None:
    one = form()
    total = np.array([-5, 2**31 - 1, -(2**31), 0, *[7] * 60])
    assert one.bits == 32
    assert np.array_equal(one.words(total).view("<i4"), total)
    assert np.array_equal(one.words(total + 2**32), one.words(total))


def test_words_of_64_bits_hold_what_32_do_not() -> None:
    total = np.array([2**40, -(2**40), *[3] * 62])
    narrow, wide = form(), form(bits=64)
    assert np.array_equal(wide.words(total).view("<i8"), total)
    assert not np.array_equal(narrow.words(total).view("<i4"), total)
    hundred_thousand = np.full(narrow.width, int(100_000 * narrow.sensitivity))
    assert sum_fits(narrow.words(hundred_thousand), 10)


def test_the_share_is_over_what_a_unit_can_change_not_over_its_length_before_rounding() -> None:
    one = form(shapes={"a": (1,)}, share=2.0)
    assert one.sensitivity > one.quanta
    assert one.deviation >= 2.0 * one.sensitivity
    drawn = one.noise(Randomness(1, "noise")).shape
    assert drawn == (one.width,)


def test_a_share_too_small_to_be_whole_numbers_is_refused_and_the_terms_have_a_name() -> None:
    with pytest.raises(ConfigError, match="noise_share"):
        form(share=LEAST_DEVIATION / form().sensitivity / 2)
    names = {form(**more).digest for more in ({}, {"share": 1.1}, {"clip_norm": 1.0}, {"seed": 4}, {"bits": 64})}
    assert len(names) == 5


@settings(max_examples=60)
@given(
    bits=st.sampled_from([32, 64]),
    sites=st.integers(2, 200),
    share=st.floats(0.6, 30),
    numbers=st.integers(1, 4000),
    seed=st.integers(0, 2**31),
)
def test_so_many_sites_words_never_leave_their_range_whatever_was_drawn(
    bits: int, sites: int, share: float, numbers: int, seed: int
) -> None:
    """The largest noise that is ever drawn on top of sums of any size; by Python's own integers."""
    made = form(shapes={"w": (numbers,)}, share=share, bits=bits)
    room, rng = made.room(sites), np.random.default_rng(seed)
    total = rng.integers(-(2**62), 2**62, 8)
    largest = int(np.abs(np.clip(total, -room, room)).max()) + FAR * made.deviation
    assert sites * largest < 2 ** (bits - 1) <= sites * (room + FAR * made.deviation + 1)
    other = total + rng.integers(-3, 4, 8) * rng.integers(1, 2**40, 8)
    moved = np.clip(other, -room, room).astype(object) - np.clip(total, -room, room)
    assert sum(int(x) ** 2 for x in moved) <= sum(int(x) ** 2 for x in other.astype(object) - total)


def test_a_form_that_leaves_no_room_for_one_unit_is_refused() -> None:
    made = form(shapes={"w": (4,)}, share=1.0)
    assert made.sensitivity < made.room(4) < made.room(3)
    with pytest.raises(ConfigError, match="wide_words"):
        form(shapes={"w": (2**20,)}, share=1.0).room(2000)
