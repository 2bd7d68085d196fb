"""Payloads as Flower messages and back.

A payload is one ``ConfigRecord`` (JSON text and digest) and one ``ArrayRecord`` of raw
little-endian bytes: no ``np.save``, no pickle, no copy by Flower. A site's failure is Flower's
``Error`` with one of our codes; its text is never read by the coordinator.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fed_diffmic.exchange.failures import FAILURES, failure_sentence
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, Wire, WireArray, decode, encode
from fed_diffmic.transport.identity import ensure_task_identity

RAW = "fed_diffmic.raw"
_PAYLOAD, _TENSORS = "payload", "tensors"


def to_record(wire: Wire) -> RecordDict:
    """An encoded payload as Flower's content (its bytes are shared, not copied)."""
    record = RecordDict({_PAYLOAD: ConfigRecord({"body": wire.body, "digest": wire.digest})})
    if wire.arrays:
        record[_TENSORS] = ArrayRecord({name: Array(a.dtype, a.shape, RAW, a.data) for name, a in wire.arrays.items()})
    return record


def from_record(record: RecordDict, limits: Limits) -> Payload:
    """The payload inside Flower's content.

    Raises:
        PayloadError: whatever is wrong with it.
    """
    try:
        wire = _wire(record)
    except PayloadError:
        raise
    except Exception as error:  # records are typed by Flower, but a peer fills them as it likes
        raise PayloadError("the records are not those of a payload") from error
    return decode(wire, limits)


def task_message(wire: Wire, *, node: int, message_type: str, ttl: float, group: str) -> Message:
    """A request to one node."""
    ensure_task_identity()
    return Message(to_record(wire), dst_node_id=node, message_type=message_type, ttl=ttl, group_id=group)


def header_digest(record: RecordDict) -> str:
    """Digest of the header inside Flower's content, which names the digest of its tensors; :func:`decode` checks it.

    For a record that :func:`from_record` took; of another it is empty.
    """
    head: Any = record.get(_PAYLOAD)
    return str(head["digest"]) if isinstance(head, ConfigRecord) and "digest" in head else ""


def reply_message(payload: Payload, request: Message, wire: Wire | None = None) -> Message:
    """A good reply.

    Args:
        wire: the payload, already encoded.
    """
    return Message(to_record(wire or encode(payload)), reply_to=request)


def failure_message(code: int, request: Message) -> Message:
    """A failure: the code and its fixed sentence, nothing else."""
    return Message(Error(code=code, reason=FAILURES[code]), reply_to=request)


def failure_of(reply: Message) -> tuple[int, str] | None:
    """Code and **our** sentence of a failed reply (the text that came is not looked at), or none."""
    if not reply.has_error():
        return None
    return reply.error.code, failure_sentence(reply.error.code)


def _wire(record: RecordDict) -> Wire:
    if not set(record) <= {_PAYLOAD, _TENSORS} or _PAYLOAD not in record:
        raise PayloadError("the records are not those of a payload")
    head: Any = record[_PAYLOAD]
    arrays: Any = record.get(_TENSORS, {})
    if not isinstance(head, ConfigRecord) or not isinstance(arrays, (ArrayRecord, dict)):
        raise PayloadError("the records are not those of a payload")
    if set(head) != {"body", "digest"}:
        raise PayloadError("the header lacks fields or has others")
    wires = {}
    for name, array in arrays.items():
        if array.stype != RAW:
            raise PayloadError("a tensor is not raw bytes")
        wires[str(name)] = WireArray(str(array.dtype), tuple(array.shape), bytes(array.data))
    return Wire(head["body"], head["digest"], wires)  # type: ignore[arg-type]  # decode checks both are text
