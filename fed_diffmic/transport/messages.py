"""Payloads as Flower messages and back.

A payload is one ``ConfigRecord`` (JSON text, its digest, its seal, where which tensor lies) and one record of the
tensors' raw little-endian bytes: no ``np.save``, no pickle. Flower moves every record as an object of its own, every
array of an ``ArrayRecord`` as two more, and each object is a request at every hop and rows in the SuperLink's database:
hundreds of small tensors would take minutes. So consecutive tensors travel together: all of them as one value of a
``ConfigRecord`` where they are at most :data:`BUNDLE` bytes, else in arrays of about as many; a tensor as large as that
travels alone, not copied. The tensors' record is never that of the rest, which differs by its seal from site to site:
what all sites are sent is stored once.

A site's failure is Flower's ``Error`` with one of our codes; its text is never read by the coordinator. It carries no
seal: whoever carries messages can make a site seem to have failed, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fed_diffmic.exchange.failures import FAILURES, failure_sentence
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, Wire, WireArray, decode, encode
from fed_diffmic.transport.identity import ensure_task_identity

RAW = "fed_diffmic.raw"
BUNDLE = 4 * 2**20
TENSORS = "tensors"
_PAYLOAD, _WHOLE = "payload", "0"


def to_record(wire: Wire) -> RecordDict:
    """An encoded payload as Flower's content (the bytes of large tensors are shared, not copied)."""
    head: dict[str, Any] = {"body": wire.body, "digest": wire.digest, **({"seal": wire.seal} if wire.seal else {})}
    if not wire.arrays:
        return RecordDict({_PAYLOAD: ConfigRecord(head)})
    head["table"] = json.dumps([[name, a.dtype, a.shape] for name, a in wire.arrays.items()], separators=(",", ":"))
    head["sizes"] = [len(a.data) for a in wire.arrays.values()]
    if sum(head["sizes"]) <= BUNDLE:
        (whole,) = _bundles(wire.arrays)
        return RecordDict({_PAYLOAD: ConfigRecord(head), TENSORS: ConfigRecord({_WHOLE: whole})})
    bundles = {str(n): Array("uint8", (len(data),), RAW, data) for n, data in enumerate(_bundles(wire.arrays))}
    return RecordDict({_PAYLOAD: ConfigRecord(head), TENSORS: ArrayRecord(bundles)})


def _bundles(arrays: Mapping[str, WireArray]) -> Iterator[bytes]:
    """The arrays' bytes, one after the other, in pieces of whole arrays."""
    waiting: list[bytes] = []
    size = 0
    for array in arrays.values():
        if waiting and array.data and size + len(array.data) > BUNDLE:
            yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
            waiting, size = [], 0
        waiting.append(array.data)
        size += len(array.data)
    yield waiting[0] if len(waiting) == 1 else b"".join(waiting)


def from_record(record: RecordDict, limits: Limits) -> Payload:
    """The payload inside Flower's content.

    Raises:
        PayloadError: whatever is wrong with it.
    """
    try:
        return decode(wire_of(record), limits)
    except PayloadError:
        raise
    except Exception as error:  # whatever a defect of ours makes of it, it is this payload that cannot be read
        raise PayloadError("the payload cannot be read") from error


def wire_of(record: RecordDict) -> Wire:
    """The payload inside Flower's content as it travelled: neither its seal nor anything else is judged yet.

    Raises:
        PayloadError: the records are not those of a payload.
    """
    try:
        return _wire(record)
    except PayloadError:
        raise
    except Exception as error:  # records are typed by Flower, but a peer fills them as it likes
        raise PayloadError("the records are not those of a payload") from error


def task_message(wire: Wire, *, node: int, message_type: str, ttl: float, group: str) -> Message:
    """A request to one node."""
    ensure_task_identity()
    return Message(to_record(wire), dst_node_id=node, message_type=message_type, ttl=ttl, group_id=group)


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
    if not set(record) <= {_PAYLOAD, TENSORS} or _PAYLOAD not in record:
        raise PayloadError("the records are not those of a payload")
    head: Any = record[_PAYLOAD]
    bundles: Any = record.get(TENSORS, {})
    if not isinstance(head, ConfigRecord) or not isinstance(bundles, (ArrayRecord, ConfigRecord, dict)):
        raise PayloadError("the records are not those of a payload")
    wanted = {"body", "digest", "table", "sizes"} if TENSORS in record else {"body", "digest"}
    if set(head) - {"seal"} != wanted:
        raise PayloadError("the header lacks fields or has others")
    arrays = dict(_arrays(head, bundles)) if TENSORS in record else {}
    # Whoever reads a wire (decode, or what opens a seal) checks that these are texts.
    return Wire(head["body"], head["digest"], arrays, head.get("seal", ""))  # type: ignore[arg-type]


def _arrays(head: Any, bundles: Mapping[str, Any]) -> Iterator[tuple[str, WireArray]]:
    """Each tensor's bytes, cut from the bundles that it was joined into: arrays, or all of them as one value."""
    table = json.loads(head["table"])
    if list(bundles) != [str(n) for n in range(len(bundles))] or len(table) != len(head["sizes"]):
        raise PayloadError("the tensors are not those of the table")
    if len({name for name, _, _ in table}) != len(table) or any(size < 0 for size in head["sizes"]):
        raise PayloadError("the table of tensors is not one")
    pieces = map(_raw, list(bundles.values()))
    data, start = next(pieces), 0
    for (name, dtype, shape), size in zip(table, head["sizes"], strict=True):
        if size and start == len(data):
            data, start = next(pieces), 0
        if start + size > len(data):
            raise PayloadError("a tensor's bytes are not all there")
        whole = size == len(data)
        yield name, WireArray(dtype, tuple(shape), data if whole else data[start : start + size])
        start += size
    if start != len(data) or next(pieces, None) is not None:
        raise PayloadError("there are bytes of no tensor")


def _raw(bundle: object) -> bytes:
    """The bytes of a bundle."""
    data = bundle.data if isinstance(bundle, Array) and bundle.stype == RAW else bundle
    if not isinstance(data, bytes):
        raise PayloadError("a tensor is not raw bytes")
    return data
