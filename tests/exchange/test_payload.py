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
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
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
    text = json.dumps({k: v for k, v in body.items() if v is not ...})
    return Wire(text, text_digest(text), wire.arrays)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": True},
        {"kind": 3},
        {"kind": ""},
        {"kind": "x" * 65},
        {"header": []},
        {"tensors": None},
        {"metrics": {"loss": math.nan}},
        {"metrics": {"loss": math.inf}},
        {"metrics": {"loss": 10**400}},
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
