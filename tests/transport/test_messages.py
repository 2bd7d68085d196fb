"""Payloads travel as Flower messages and back; whatever else comes is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from fed_diffmic.exchange.failures import BAD_REQUEST, FAILURES, NODE_FAILED
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, encode
from fed_diffmic.transport import messages
from fed_diffmic.transport.identity import ensure_task_identity, set_message_id
from fed_diffmic.transport.messages import (
    RAW,
    failure_message,
    failure_of,
    from_record,
    reply_message,
    task_message,
    to_record,
    wire_of,
)

AMPLE = Limits(tensor_bytes=1 << 20)
PAYLOAD = Payload(
    "train",
    {"round": 1, "site": "Klinik Süd"},
    {
        "w": np.linspace(0, 1, 7, dtype=np.float32),
        "count": np.array(3, np.int64),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float16),
    },
    {"loss": 0.25},
)


def request() -> Message:
    message = task_message(encode(PAYLOAD), node=4, message_type="train", ttl=60.0, group="1")
    set_message_id(message, "m-1")
    return message


def assert_equal(got: Payload, wanted: Payload) -> None:
    assert (got.kind, got.header, got.metrics) == (wanted.kind, wanted.header, wanted.metrics)
    assert got.tensors.keys() == wanted.tensors.keys()
    for name, value in wanted.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], value)
        assert got.tensors[name].dtype == value.dtype


def test_a_payload_survives_flowers_own_serialisation() -> None:
    message = request()
    message.metadata.__dict__["_delivered_at"] = ""
    travelled = message_from_proto(message_to_proto(message))
    assert travelled.metadata.dst_node_id == 4
    assert_equal(from_record(travelled.content, AMPLE), PAYLOAD)


@pytest.mark.parametrize("bundle", [1, 8, 40, 1 << 20])
def test_tensors_travel_together_in_bundles_of_whole_tensors(bundle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "BUNDLE", bundle)
    record = to_record(encode(PAYLOAD))
    bundles: Any = record["tensors"]
    assert isinstance(bundles, ConfigRecord if bundle >= 38 else ArrayRecord)
    sizes = [len(value if isinstance(value, bytes) else value.data) for value in bundles.values()]
    assert sum(sizes) == 28 + 8 + 2
    assert len(sizes) == {1: 3, 8: 3, 40: 1, 1 << 20: 1}[bundle]
    assert_equal(from_record(record, AMPLE), PAYLOAD)


def test_a_large_tensor_is_not_copied_to_travel() -> None:
    wire = encode(Payload("train", {}, {"large": np.zeros(messages.BUNDLE, np.uint8), "small": np.zeros(3, np.uint8)}))
    record = to_record(wire)
    assert record["tensors"]["0"].data is wire.arrays["large"].data  # type: ignore[union-attr]


def test_a_reply_names_the_message_it_answers() -> None:
    reply = reply_message(Payload("train.reply"), request())
    assert reply.metadata.reply_to_message_id == "m-1"
    assert failure_of(reply) is None
    assert_equal(from_record(reply.content, AMPLE), Payload("train.reply"))


def test_of_a_failure_only_our_own_sentence_is_read() -> None:
    assert failure_of(failure_message(BAD_REQUEST, request())) == (BAD_REQUEST, FAILURES[BAD_REQUEST])
    stranger = Message(Error(code=2, reason="FileNotFoundError: /data/DOE_JANE.png"), reply_to=request())
    assert failure_of(stranger) == (2, FAILURES[NODE_FAILED])


def test_other_records_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = to_record(encode(PAYLOAD))
    for value in (7, "1" * 38, [b"1" * 38], b"1" * 37, b"1" * 39):
        changed_value = {"payload": small["payload"], "tensors": ConfigRecord({"0": value})}  # type: ignore[dict-item]
        with pytest.raises(PayloadError):
            from_record(RecordDict(changed_value), AMPLE)
    monkeypatch.setattr(messages, "BUNDLE", 37)
    good = to_record(encode(PAYLOAD))
    head, tensors = good["payload"], good["tensors"]
    npy = Array(np.zeros(2, np.float32))
    raw = Array("uint8", (8,), RAW, bytes(8))

    def changed(**fields: object) -> RecordDict:
        other: dict[str, Any] = {**head, **fields}
        return RecordDict({"payload": ConfigRecord(other), "tensors": tensors})

    for record in (
        RecordDict(),
        RecordDict({"payload": head}),
        RecordDict({"payload": head, "tensors": tensors, "more": ConfigRecord({})}),
        RecordDict({"payload": MetricRecord({"body": 1.0, "digest": 2.0})}),
        RecordDict({"payload": ConfigRecord({"body": 1, "digest": 2})}),
        RecordDict({"payload": ConfigRecord({"body": b"x", "digest": "y"})}),
        RecordDict({"payload": ConfigRecord({"body": "x"})}),
        RecordDict({"payload": head, "tensors": ConfigRecord({"w": "1"})}),
        RecordDict({"payload": head, "tensors": ArrayRecord({**tensors, "1": npy})}),
        RecordDict({"payload": head, "tensors": ArrayRecord({**tensors, "2": raw})}),
        RecordDict({"payload": head, "tensors": ArrayRecord({**tensors, "w": raw})}),
        RecordDict({"payload": head, "tensors": ArrayRecord({"0": raw})}),
        RecordDict({"payload": head, "tensors": ArrayRecord({})}),
        changed(sizes=[28, 8, 2, 1]),
        changed(sizes=[28, 8, 3, -1]),
        changed(sizes=[28, 8]),
        changed(sizes=[8, 28, 2, 0]),
        changed(table="[]"),
        changed(table="{"),
        changed(table=7),
        changed(table=str(head["table"]).replace('"count"', '"w"')),
        changed(more="x"),
    ):
        with pytest.raises(PayloadError):
            from_record(record, AMPLE)


def test_a_seal_travels_beside_the_payload_and_is_for_who_can_check_it() -> None:
    wire = replace(encode(PAYLOAD), seal='{"x":1}')
    assert wire_of(to_record(wire)) == wire
    with pytest.raises(PayloadError, match="sealed"):
        from_record(to_record(wire), AMPLE)
    assert "seal" not in to_record(encode(PAYLOAD))["payload"]  # type: ignore[operator]
    with pytest.raises(PayloadError, match="records"):
        wire_of(RecordDict())


def test_the_identity_that_flower_set_is_kept() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    ensure_task_identity()
    before = TaskIdentity.run_id
    TaskIdentity.run_id = 77
    try:
        ensure_task_identity()
        assert TaskIdentity.run_id == 77
        assert request().metadata.run_id == 77
    finally:
        TaskIdentity.run_id = before
