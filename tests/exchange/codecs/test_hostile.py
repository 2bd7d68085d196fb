"""Bytes that no codec wrote are refused by a sentence or stand for finite numbers; no claim reserves memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.codecs import DELTA, Codec, build_codec, code, restore
from fed_diffmic.exchange.codecs.base import RAW, ZSTANDARD, packed, unpacked
from fed_diffmic.exchange.payload import PayloadError

LOSSY = ("bfloat16", "int8", "int4", "topk")
SHAPE = (20, 33)
COUNT = 660


def codec(name: str) -> Codec:
    return build_codec(StrategyConfig(codec=name))


def raw(data: bytes) -> np.ndarray:
    return np.frombuffer(bytes([RAW]) + data, dtype=np.uint8)


def whole(name: str) -> bytes:
    values = np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)
    return codec(name).encode(values)


def taken(name: str, array: np.ndarray) -> np.ndarray:
    reference = {"w": np.zeros(SHAPE, dtype=np.float32)}
    return restore(codec(name), {DELTA + "w": array}, reference)["w"]


@pytest.mark.parametrize("name", LOSSY)
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_bytes_do_anything_but_raise_payload_error(name: str, data: st.DataObject) -> None:
    good = bytearray(whole(name))
    how = data.draw(st.sampled_from(["change", "cut", "any", "frame"]))
    if how == "change":
        for _ in range(data.draw(st.integers(1, 8))):
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        array = raw(bytes(good))
    elif how == "cut":
        array = packed(bytes(good))[: data.draw(st.integers(0, 200))]
    elif how == "any":
        array = np.frombuffer(data.draw(st.binary(max_size=2000)), dtype=np.uint8)
    else:
        array = packed(bytes(good)).copy()
        for _ in range(data.draw(st.integers(1, 4))):
            array[data.draw(st.integers(0, array.size - 1))] = data.draw(st.integers(0, 255))
    try:
        found = taken(name, array)
    except PayloadError:
        return
    assert found.shape == SHAPE and found.dtype == np.float32 and np.isfinite(found).all()


@pytest.mark.parametrize("name", LOSSY)
def test_another_number_of_bytes_is_refused(name: str) -> None:
    for data in (whole(name) + b"\0", whole(name)[:-1], b""):
        with pytest.raises(PayloadError, match="another size"):
            taken(name, raw(data))


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_is_none_is_refused(name: str, scale: float) -> None:
    with pytest.raises(PayloadError, match="negative or not finite"):
        taken(name, raw(np.float32(scale).tobytes() + whole(name)[4:]))


def test_numbers_that_the_encoder_never_writes_are_refused() -> None:
    for name, last in (("int8", b"\x80"), ("int4", b"\x00")):
        with pytest.raises(PayloadError, match="out of range"):
            taken(name, raw(whole(name)[:-1] + last))
    for name, numbers in (("bfloat16", COUNT), ("topk", 33)):
        with pytest.raises(PayloadError, match="not finite"):
            taken(name, raw(whole(name)[: -2 * numbers] + b"\xff" * 2 * numbers))
    with pytest.raises(PayloadError, match="not finite"):  # finite for itself, infinite together with its scale
        taken("int8", raw(np.float32(3e38).tobytes() + whole("int8")[4:]))


def test_the_sum_of_what_is_there_and_what_came_may_not_be_infinite() -> None:
    reference = {"w": np.full(SHAPE, 3e38, dtype=np.float32)}
    change = np.full(COUNT, 0x7F00, dtype="<u2")
    columns = np.ascontiguousarray(change.view(np.uint8).reshape(-1, 2).T).tobytes()
    with pytest.raises(PayloadError, match="not finite"):
        restore(codec("bfloat16"), {DELTA + "w": raw(columns)}, reference)


@pytest.mark.parametrize(
    ("steps", "why"), [([0] * 33, "named twice"), ([20] * 33, "at the end"), ([255] * 33, "beyond the end")]
)
def test_places_out_of_range_and_named_twice_are_refused(steps: list[int], why: str) -> None:
    data = bytes([1, *steps]) + b"\0" * 66
    if why == "at the end":  # 20 * 33 is the number of numbers: one past the last place
        with pytest.raises(PayloadError, match="place"):
            taken("topk", raw(data))
        assert taken("topk", raw(bytes([1, 19, *steps[1:]]) + b"\0" * 66)).shape == SHAPE
    else:
        with pytest.raises(PayloadError, match="place"):
            taken("topk", raw(data))


def test_steps_that_pass_64_bits_are_refused() -> None:
    many = np.full(33, 2**32 - 1, dtype="<u4")
    columns = np.ascontiguousarray(many.view(np.uint8).reshape(-1, 4).T).tobytes()
    with pytest.raises(PayloadError, match="place"):
        taken("topk", raw(bytes([4]) + columns + b"\0" * 66))


def bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(b"\0" * size)


def peak(array: np.ndarray) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            taken("int8", array)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_frame_that_becomes_more_than_its_tensor_takes_is_not_unpacked() -> None:
    """256 MiB of zeros in some kilobytes: the claimed size is looked at first."""
    framed = np.frombuffer(bytes([ZSTANDARD]) + bomb(2**28), dtype=np.uint8)
    assert framed.size < 2**16
    assert peak(framed) < 2**20


def test_a_frame_that_claims_the_right_size_and_holds_more_is_refused() -> None:
    size = codec("int8").sizes(COUNT)[0]
    writer = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    silent = writer.compress(b"\0" * 2**24) + writer.flush()
    small = bytearray(bomb(size))
    large = bytearray(bomb(2**24))
    head = zstandard.frame_header_size
    for data in (
        silent,
        bytes(small[: head(bytes(small))] + large[head(bytes(large)) :]),
        bytes(small) + bytes(large),
        bytes(small) + b"\0",
    ):
        with pytest.raises(PayloadError):
            taken("int8", np.frombuffer(bytes([ZSTANDARD]) + data, dtype=np.uint8))


def test_a_frame_that_needs_a_dictionary_is_refused() -> None:
    samples = [bytes([n % 7]) * 40 + bytes(range(n, n + 60)) for n in range(150)]
    trained = zstandard.train_dictionary(2000, samples)
    framed = zstandard.ZstdCompressor(dict_data=trained).compress(whole("int8"))
    with pytest.raises(PayloadError):
        taken("int8", np.frombuffer(bytes([ZSTANDARD]) + framed, dtype=np.uint8))


def test_only_bytes_are_unpacked() -> None:
    good = packed(whole("int8"))
    for array in (good.astype(np.int64), good.reshape(1, -1), good[:0], np.array([7, 1, 2], dtype=np.uint8)):
        with pytest.raises(PayloadError):
            unpacked(array, codec("int8").sizes(COUNT))


def test_what_cannot_be_coded_is_refused_when_it_comes_coded() -> None:
    reference = {
        "w": np.zeros(SHAPE, dtype=np.float32),
        "bias": np.zeros(33, dtype=np.float32),
        "count": np.zeros(SHAPE, dtype=np.int64),
        "w.running_var": np.zeros(SHAPE, dtype=np.float32),
    }
    good = code(codec("int8"), {"w": np.ones(SHAPE, dtype=np.float32)}, reference).travels[DELTA + "w"]
    for name in ("bias", "count", "w.running_var", "unknown"):
        with pytest.raises(PayloadError, match="coded that cannot be"):
            restore(codec("int8"), {DELTA + name: good}, reference)
    with pytest.raises(PayloadError, match="coded that cannot be"):
        restore(codec("float32"), {DELTA + "w": good}, reference)
    for both in ({"w": reference["w"], DELTA + "w": good}, {DELTA + "w": good, "w": reference["w"]}):
        with pytest.raises(PayloadError, match="twice"):
            restore(codec("int8"), both, reference)
