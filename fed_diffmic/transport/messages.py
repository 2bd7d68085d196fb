"""Payloads as Flower messages and back.

A payload is one ``ConfigRecord`` (JSON text, its digest, its seal, where which tensor lies) and one ``ArrayRecord`` of
raw little-endian bytes: no ``np.save``, no pickle. Flower moves every array as objects of its own, each a request at
every hop and rows in the SuperLink's database: hundreds of small tensors would take minutes. So consecutive tensors
travel together in bundles of about :data:`BUNDLE` bytes; a tensor as large as that travels alone, not copied. A
site's failure is Flower's ``Error`` with one of our codes; its text is never read by the coordinator. It carries no
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
_PAYLOAD, _TENSORS = "payload", "tensors"


def to_record(wire: Wire) -> RecordDict:
    """An encoded payload as Flower's content (the bytes of large tensors are shared, not copied)."""
    head: dict[str, Any] = {"body": wire.body, "digest": wire.digest, **({"seal": wire.seal} if wire.seal else {})}
    if not wire.arrays:
        return RecordDict({_PAYLOAD: ConfigRecord(head)})
    head["table"] = json.dumps([[name, a.dtype, a.shape] for name, a in wire.arrays.items()], separators=(",", ":"))
    head["sizes"] = [len(a.data) for a in wire.arrays.values()]
    bundles = {str(n): Array("uint8", (len(data),), RAW, data) for n, data in enumerate(_bundles(wire.arrays))}
    return RecordDict({_PAYLOAD: ConfigRecord(head), _TENSORS: ArrayRecord(bundles)})


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
    if not set(record) <= {_PAYLOAD, _TENSORS} or _PAYLOAD not in record:
        raise PayloadError("the records are not those of a payload")
    head: Any = record[_PAYLOAD]
    bundles: Any = record.get(_TENSORS, {})
    if not isinstance(head, ConfigRecord) or not isinstance(bundles, (ArrayRecord, dict)):
        raise PayloadError("the records are not those of a payload")
    wanted = {"body", "digest", "table", "sizes"} if _TENSORS in record else {"body", "digest"}
    if set(head) - {"seal"} != wanted:
        raise PayloadError("the header lacks fields or has others")
    arrays = dict(_arrays(head, bundles)) if _TENSORS in record else {}
    # Whoever reads a wire (decode, or what opens a seal) checks that these are texts.
    return Wire(head["body"], head["digest"], arrays, head.get("seal", ""))  # type: ignore[arg-type]


def _arrays(head: Any, bundles: Mapping[str, Array]) -> Iterator[tuple[str, WireArray]]:
    """Each tensor's bytes, cut from the bundles that it was joined into."""
    table = json.loads(head["table"])
    if list(bundles) != [str(n) for n in range(len(bundles))] or len(table) != len(head["sizes"]):
        raise PayloadError("the tensors are not those of the table")
    if len({name for name, _, _ in table}) != len(table) or any(size < 0 for size in head["sizes"]):
        raise PayloadError("the table of tensors is not one")
    if any(bundle.stype != RAW for bundle in bundles.values()):
        raise PayloadError("a tensor is not raw bytes")
    pieces = iter(bundles.values())
    data, start = next(pieces).data, 0
    for (name, dtype, shape), size in zip(table, head["sizes"], strict=True):
        if size and start == len(data):
            data, start = next(pieces).data, 0
        if start + size > len(data):
            raise PayloadError("a tensor's bytes are not all there")
        whole = size == len(data)
        yield name, WireArray(dtype, tuple(shape), data if whole else data[start : start + size])
        start += size
    if start != len(data) or next(pieces, None) is not None:
        raise PayloadError("there are bytes of no tensor")
