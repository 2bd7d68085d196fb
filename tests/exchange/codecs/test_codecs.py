"""Each codec keeps the bound of its docstring, whatever finite numbers it gets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.codecs import Codec, build_codec, codec_names
from fed_diffmic.exchange.codecs.base import LARGEST
from fed_diffmic.exchange.codecs.blocks import blocks_of

BLOCKS = {"int8": (256, 127), "int4": (128, 7)}
NUMBERS = (
    st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1, 1, width=32) | st.floats(-(2.0**-126), 2.0**-126, width=32)
)
VALUES = st.one_of(
    hnp.arrays(np.float32, st.integers(1, 700), elements=NUMBERS, fill=st.just(0.0)),
    st.tuples(st.integers(1, 2000), st.integers(0, 2**32 - 1), st.integers(-149, 100)).map(
        lambda t: (np.random.default_rng(t[1]).standard_normal(t[0]) * 2.0 ** t[2]).astype(np.float32)
    ),
)


def codec(name: str, share: float = 0.05) -> Codec:
    return build_codec(StrategyConfig(codec=name, topk_share=share))


def there_and_back(name: str, values: np.ndarray, share: float = 0.05) -> np.ndarray:
    chosen = codec(name, share)
    data = chosen.encode(values)
    assert len(data) in chosen.sizes(values.size)
    found = chosen.decode(data, values.size)
    assert found.dtype == np.float32 and found.shape == values.shape
    return found


def test_the_codecs_are_those_of_the_configuration() -> None:
    assert codec_names() == ["bfloat16", "float32", "int4", "int8", "topk"]


@given(VALUES)
@settings(max_examples=30, deadline=None)
def test_float32_is_exact(values: np.ndarray) -> None:
    np.testing.assert_array_equal(there_and_back("float32", values), values)


@given(VALUES)
@settings(max_examples=80, deadline=None)
def test_bfloat16_is_within_its_bound(values: np.ndarray) -> None:
    wide = values.astype(np.float64)
    assert (np.abs(there_and_back("bfloat16", values) - wide) <= 2.0**-8 * np.abs(wide) + 2.0**-134).all()


@pytest.mark.parametrize("name", sorted(BLOCKS))
@given(values=VALUES)
@settings(max_examples=80, deadline=None)
def test_whole_numbers_are_within_half_a_step_of_their_block(name: str, values: np.ndarray) -> None:
    block, levels = BLOCKS[name]
    off = np.abs(there_and_back(name, values) - values.astype(np.float64))
    for n in range(blocks_of(values.size, block)):
        inside = slice(n * block, (n + 1) * block)
        largest = float(np.abs(values[inside]).max())
        assert off[inside].max() <= largest / (2 * levels) * (1 + 2.0**-16) + 2.0**-142


def test_a_block_has_a_scale_of_its_own() -> None:
    """Small numbers beside large ones of another block keep their digits: one scale a tensor would make them zero."""
    for name, (block, levels) in BLOCKS.items():
        values = np.concatenate([np.full(block, 1000.0), np.full(block, 0.001)]).astype(np.float32)
        np.testing.assert_allclose(there_and_back(name, values), values, rtol=1 / levels)


@given(VALUES, st.floats(0.001, 1.0))
@settings(max_examples=80, deadline=None)
def test_topk_leaves_out_no_more_than_its_share_of_the_norm(values: np.ndarray, share: float) -> None:
    wide = values.astype(np.float64)
    kept = math.ceil(share * values.size)
    off = there_and_back("topk", values, share) - wide
    whole = float(np.vdot(wide, wide))
    assert (
        float(np.vdot(off, off)) <= (1 - kept / values.size + 2.0**-16) * whole * (1 + 1e-9) + values.size * 2.0**-268
    )
    assert np.count_nonzero(there_and_back("topk", values, share)) <= kept


def test_of_equal_numbers_topk_takes_the_first() -> None:
    values = np.array([1, -2, 2, 1, -2, 0.5, 2, 1], dtype=np.float32)
    np.testing.assert_array_equal(there_and_back("topk", values, 3 / 8), [0, -2, 2, 0, -2, 0, 0, 0])


def test_topk_counts_distances_in_as_few_bytes_as_they_need() -> None:
    for gap, width in ((200, 1), (300, 2), (70_000, 4)):
        values = np.zeros(gap + 1, dtype=np.float32)
        values[gap] = 1.0
        data = codec("topk", 1e-9).encode(values)
        assert data[0] == width and len(data) == 3 + width
        assert np.flatnonzero(there_and_back("topk", values, 1e-9)).tolist() == [gap]


@pytest.mark.parametrize(("number", "bits"), [(1.0, 0x3F80), (1 + 2.0**-8, 0x3F80), (1 + 3 * 2.0**-8, 0x3F82)])
def test_ties_go_to_the_even_bfloat16(number: float, bits: int) -> None:
    assert codec("bfloat16").encode(np.array([number], dtype=np.float32)) == bits.to_bytes(2, "little")


def test_whole_numbers_by_hand() -> None:
    values = np.array([-7.0, 3.4, 0.0, 1.6, 7.0], dtype=np.float32)  # the scale is 1
    data = codec("int4").encode(values)
    assert data == np.float32(1.0).tobytes() + bytes([1 | 11 << 4, 8 | 10 << 4, 15 | 8 << 4])
    assert codec("int8").encode(np.array([127.0, -1.5, 0.4], dtype=np.float32)) == np.float32(1.0).tobytes() + bytes(
        [127, 256 - 2, 0]
    )
