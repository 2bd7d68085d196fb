"""The decoder takes what the encoder made, and raises PayloadError for anything else whatever it is."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_diffmic.exchange.payload import (
    DTYPES,
    Limits,
    Payload,
    PayloadError,
    Wire,
    WireArray,
    decode,
    encode,
    pack,
    request_name,
    text_digest,
)

AMPLE = Limits(tensor_bytes=1 << 20)
NAMES = st.from_regex(r"(base/|algorithm/)?[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PAYLOADS = st.builds(
    Payload,
    kind=st.text(min_size=1, max_size=20),
    header=st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    tensors=st.dictionaries(NAMES, ARRAYS, max_size=4),
    metrics=st.dictionaries(
        st.from_regex(r"[a-z]{1,6}(/[0-9]){0,2}", fullmatch=True), st.floats(-1e9, 1e9), max_size=4
    ),
)


@given(PAYLOADS)
@settings(max_examples=60, deadline=None)
def test_what_was_encoded_is_decoded(payload: Payload) -> None:
    got = decode(encode(payload), AMPLE)
    assert (got.kind, got.header, got.metrics) == (payload.kind, payload.header, payload.metrics)
    assert got.tensors.keys() == payload.tensors.keys()
    for name, value in payload.tensors.items():
        assert got.tensors[name].dtype == value.dtype
        assert got.tensors[name].shape == value.shape
        assert got.tensors[name].tobytes() == value.tobytes()
        assert got.tensors[name].flags.writeable


@given(PAYLOADS, st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_one_changed_byte_is_noticed(payload: Payload, data: st.DataObject) -> None:
    wire = encode(payload)
    body = bytearray(wire.body.encode())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 127))
    changed = body.decode("utf-8", "replace")
    if changed != wire.body:
        with pytest.raises(PayloadError):
            decode(dataclasses.replace(wire, body=changed), AMPLE)
    filled = [name for name, array in wire.arrays.items() if array.data]
    if filled:
        name = data.draw(st.sampled_from(filled))
        raw = bytearray(wire.arrays[name].data)
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        arrays = {**wire.arrays, name: dataclasses.replace(wire.arrays[name], data=bytes(raw))}
        with pytest.raises(PayloadError):
            decode(dataclasses.replace(wire, arrays=arrays), AMPLE)


@given(
    body=st.text(max_size=60) | JSON.map(lambda value: json.dumps(value)),
    honest=st.booleans(),
    arrays=st.dictionaries(
        st.text(max_size=12),
        st.builds(
            WireArray,
            dtype=st.sampled_from([*DTYPES, "object", "V8", "<U4", ">f4", "float32\0", ""]),
            shape=st.lists(st.integers(-3, 1 << 62), max_size=3).map(tuple),
            data=st.binary(max_size=40),
        ),
        max_size=3,
    ),
)
@settings(max_examples=200, deadline=None)
def test_no_input_does_anything_but_raise_payload_error(body: str, honest: bool, arrays: dict[str, WireArray]) -> None:
    with pytest.raises(PayloadError):
        decode(Wire(body, text_digest(body) if honest else "0" * 64, arrays), AMPLE)


def with_body(**changes: Any) -> Wire:
    """A wire whose digest is right and whose body is not."""
    wire = encode(Payload("train", {"round": 1}, {"w": np.zeros(2, np.float32)}, {"loss": 1.0}))
    body = {**json.loads(wire.body), **changes}
    return worded(canonical({k: v for k, v in body.items() if v is not ...}), wire.arrays)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def worded(text: str, arrays: Any = None) -> Wire:
    return Wire(text, text_digest(text), arrays or {})


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": True},
        {"schema": 1.0},
        {"kind": 3},
        {"kind": ""},
        {"kind": "x" * 65},
        {"header": []},
        {"tensors": None},
        {"metrics": {"loss": math.nan}},
        {"metrics": {"loss": math.inf}},
        {"metrics": {"loss": 10**400}},
        {"metrics": {"loss": 1}},
        {"metrics": {"loss": 1e301}},
        {"metrics": {"loss": True}},
        {"metrics": {"loss": "1"}},
        {"metrics": {"../loss": 1.0}},
        {"metrics": []},
        {"more": 1},
        {"header": ...},
    ],
    ids=str,
)
def test_a_body_that_is_not_the_schema_is_refused(changes: dict[str, Any]) -> None:
    decode(with_body(), AMPLE)
    with pytest.raises(PayloadError):
        decode(with_body(**changes), AMPLE)


def test_a_key_given_twice_and_deep_nesting_are_refused() -> None:
    for text in ('{"schema":1,"schema":1}', "[" * 100_000):
        with pytest.raises(PayloadError):
            decode(Wire(text, text_digest(text), {}), AMPLE)


def test_nothing_is_allocated_before_the_sizes_agree() -> None:
    huge = WireArray("float64", (1 << 40, 1 << 40), b"")
    wire = encode(Payload("train"))
    with pytest.raises(PayloadError, match="do not fill"):
        decode(dataclasses.replace(wire, arrays={"w": huge}), AMPLE)


def test_limits_hold() -> None:
    wire = encode(Payload("train", tensors={"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}))
    decode(wire, Limits(tensor_bytes=32, tensors=2))
    for limits in (Limits(tensor_bytes=31, tensors=2), Limits(tensor_bytes=32, tensors=1)):
        with pytest.raises(PayloadError, match="than expected"):
            decode(wire, limits)


def test_the_encoder_refuses_what_the_decoder_would() -> None:
    for payload in (
        Payload("train", tensors={"../w": np.zeros(1, np.float32)}),
        Payload("train", tensors={"w": np.zeros(1, np.complex64)}),
        Payload("train", tensors={"w": np.array(["x"], dtype=object)}),
        Payload("train", metrics={"loss": math.nan}),
        Payload("train", header={"x": math.inf}),
        Payload("train", header={"x": object()}),
    ):
        with pytest.raises(PayloadError):
            encode(payload)


def test_messages_are_fixed_sentences() -> None:
    secret = "DOE_JANE"
    text = json.dumps({secret: secret})
    for wire in (
        Wire(text, text_digest(text), {}),
        Wire(secret, text_digest(secret), {}),
        dataclasses.replace(encode(Payload("t")), arrays={f"{secret} ": WireArray("float32", (0,), b"")}),
    ):
        with pytest.raises(PayloadError) as caught:
            decode(wire, AMPLE)
        assert secret not in str(caught.value)


def test_packing_once_gives_the_same_wire() -> None:
    payload = Payload("train", {"round": 2}, {"w": np.arange(3, dtype=np.int64)})
    assert encode(payload, pack(payload.tensors)) == encode(payload)


def test_big_endian_arrays_travel_by_value() -> None:
    values = np.arange(5, dtype=">f4")
    got = decode(encode(Payload("t", tensors={"w": values})), AMPLE).tensors["w"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values.astype(np.float32))


def test_a_request_is_named_by_its_header() -> None:
    assert request_name({"a": 1, "b": 2}) == request_name({"b": 2, "a": 1})
    assert request_name({"a": 1}) != request_name({"a": 2})


# ---- one encoding of one meaning ----------------------------------------------------------------
GOOD = encode(Payload("train", {"round": 1, "word": "\u00e9 \U0001f600"}, metrics={"loss": 0.5})).body


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"header"', ' {"header"'),
        ("}", "}\n"),
        ('"round":1', '"round": 1'),
        ('"round":1', '"round":1e999'),
        ('"round":1', '"round":-1e999'),
        ('"round":1', '"round":-1e-400'),
        ('"round":1', '"round":1E0'),
        ('"round":1', '"round":' + "9" * 400),
        ('"round":1', '"round":9223372036854775808'),
        ('"round":1', '"round":' + "[" * 40 + "]" * 40),
        ('"round":1', '"round":' + "[" * 900 + "]" * 900),
        ('"round":1', '"round":"\\ud800"'),
        ('"round":1', '"\\ud800":1'),
        ('"round":1', '"round":"\\u0041"'),
        ('"round":1', '"round":NaN'),
        ('"loss":0.5', '"loss":5e-1'),
        ('"loss":0.5', '"loss":0.50'),
        ('"loss":0.5', '"loss":-1e-400'),
        ('"loss":0.5', '"loss":' + "9" * 400),
        ('"loss":0.5', '"loss":0.5,"loss":0.5'),
        ('"schema":1', '"schema":1.0'),
        ('"kind":"train","metrics":{"loss":0.5}', '"metrics":{"loss":0.5},"kind":"train"'),
    ],
)
def test_a_second_way_of_writing_it_or_what_nobody_could_write_again_is_refused(before: str, after: str) -> None:
    decode(worded(GOOD), AMPLE)
    changed = (
        GOOD[::-1].replace(before[::-1], after[::-1], 1)[::-1] if before == "}" else GOOD.replace(before, after, 1)
    )
    assert changed != GOOD
    with pytest.raises(PayloadError):
        decode(worded(changed), AMPLE)


DECODED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.text(st.characters(), max_size=4), DECODED, max_size=3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_whatever_header_is_decoded_can_be_named_and_sent_on(header: dict[str, Any], ascii_only: bool) -> None:
    body = {**json.loads(GOOD), "header": header}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=ascii_only)
    try:
        got = decode(worded(text), AMPLE)
    except PayloadError:
        if text == canonical(body):  # what the receiver refuses the sender does not send
            with pytest.raises(PayloadError):
                encode(Payload("train", header, metrics={"loss": 0.5}))
        return
    assert encode(got).body == text
    request_name(got.header)
    text.encode()


SIDES = st.sampled_from([0, 1, 2, 3, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**400, -1, True, 1.0, "1", None])


@given(
    shape=st.lists(SIDES, max_size=40) | st.sampled_from(["12", {}, {1: 2}, b"1"]),
    data=st.binary(max_size=24),
    dtype=st.sampled_from([*DTYPES, "object", None, 3, ["float32"], ("float32",)]),
)
@settings(max_examples=400, deadline=None)
def test_whatever_shape_comes_it_is_an_array_or_payload_error(shape: Any, data: bytes, dtype: Any) -> None:
    wire = dataclasses.replace(worded(GOOD), arrays={"w": WireArray(dtype, shape, data)})
    with pytest.raises(PayloadError):  # the digest is another at least
        decode(wire, AMPLE)


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (0, 2**63), (2**62, 0, 2**62), (0, 2**40, 2**40)])
def test_no_elements_of_a_size_that_no_array_has(shape: tuple[int, ...]) -> None:
    wire = dataclasses.replace(worded(GOOD), arrays={"w": WireArray("float32", shape, b"")})
    with pytest.raises(PayloadError, match="shape is not one"):
        decode(wire, AMPLE)


@pytest.mark.parametrize("dims", [31, 32, 33, 64])
def test_as_many_dimensions_are_decoded_as_are_encoded(dims: int) -> None:
    payload = Payload("train", tensors={"w": np.zeros((1,) * dims, np.float32)})
    if dims > 32:
        with pytest.raises(PayloadError, match="shape is not one"):
            encode(payload)
    else:
        assert decode(encode(payload), AMPLE).tensors["w"].shape == (1,) * dims


@pytest.mark.parametrize(
    "payload",
    [
        Payload("train", metrics={"loss": 10**400}),
        Payload("train", {"x": 2**63}),
        Payload("train", {"x": "\ud800"}),
        Payload("train", {"\ud800": 1}),
        Payload("train", {"x": json.loads("[" * 40 + "]" * 40)}),
        Payload("", {}),
        Payload("x" * 65, {}),
    ],
    ids=lambda p: ascii(p.kind)[:5] + ascii(p.header)[:12],
)
def test_a_sender_is_told_of_what_the_receiver_would_refuse(payload: Payload) -> None:
    with pytest.raises(PayloadError):
        encode(payload)
