"""Several requests to one node as one message, and their replies as one.

Each request keeps its own body, digest, tensors and seal, and each reply its own: nothing is judged otherwise than if
it had come alone, and the site answers them in their order. What they share is the way: one push, one poll, one task,
and one record of everything but their tensors, for each record is a request more at every hop.
A reply may hold good answers to some of them and failures for the others (numbers without a seal, as Flower's errors).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message

from fed_diffmic.exchange.failures import failure_sentence
from fed_diffmic.exchange.payload import PayloadError, Wire
from fed_diffmic.transport.identity import ensure_task_identity
from fed_diffmic.transport.messages import TENSORS, to_record

JUDGED = "train.judged"
"""The message that asks for the metrics of some weights and for a local update that begins with them."""
KINDS = ("evaluate", "train")
"""What it holds, in the order in which it is answered."""
_FAILURE, _HEADS, _BETWEEN = "failure", "heads", "."


def joined_message(wires: Mapping[str, Wire], *, node: int, message_type: str, ttl: float, group: str) -> Message:
    """Encoded requests, by their kinds, as one message to a node."""
    ensure_task_identity()
    records = {kind: to_record(wire) for kind, wire in wires.items()}
    return Message(_joined(records), dst_node_id=node, message_type=message_type, ttl=ttl, group_id=group)


def joined_reply(replies: Mapping[str, Message], request: Message) -> Message:
    """Replies, by the kinds of what they answer, as one to the message that brought the requests."""
    records = {
        kind: RecordDict({_FAILURE: ConfigRecord({"code": reply.error.code})}) if reply.has_error() else reply.content
        for kind, reply in replies.items()
    }
    return Message(_joined(records), reply_to=request)


def parts_of(message: Message, kinds: Sequence[str] = KINDS) -> dict[str, Message]:
    """What a message of several holds, each as if it had come alone; an error is that of each.

    Raises:
        PayloadError: it is not a message of these kinds.
    """
    metadata = message.metadata
    if message.has_error():
        return {kind: make_message(metadata, error=message.error) for kind in kinds}
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for name, record in message.content.items():
        if name == _HEADS and isinstance(record, ConfigRecord):
            continue
        kind, between, rest = str(name).partition(_BETWEEN)
        if not between or kind not in found:
            raise PayloadError("the records are not those of several payloads")
        found[kind][rest] = record
    for kind, records in _heads(message.content.get(_HEADS, ConfigRecord({})), kinds).items():
        if set(records) & set(found[kind]):
            raise PayloadError("a record is there twice")
        found[kind] = {**records, **found[kind]}
    return {kind: _part(records, metadata) for kind, records in found.items()}


def name_of(parts: Mapping[str, Message]) -> str:
    """A name of a message of several that its seals give: the very same message has the same one, and no other."""
    came = [part.content for part in parts.values() if not part.has_error()]
    seals = [content["payload"].get("seal", "") for content in came if "payload" in content]
    return hashlib.sha256("\0".join(str(seal) for seal in seals).encode()).hexdigest()


def _joined(records: Mapping[str, RecordDict]) -> RecordDict:
    heads: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    for kind, own in records.items():
        for name, record in own.items():
            if name == TENSORS:
                whole[_BETWEEN.join((kind, name))] = record
            else:
                heads |= {_BETWEEN.join((kind, name, key)): value for key, value in record.items()}
    return RecordDict({_HEADS: ConfigRecord(heads), **whole})


def _heads(joined: Any, kinds: Sequence[str]) -> dict[str, dict[str, ConfigRecord]]:
    """The records of each kind that travel as one."""
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in kinds}
    for whole, value in joined.items():
        kind, _, rest = str(whole).partition(_BETWEEN)
        name, between, key = rest.partition(_BETWEEN)
        if not between or kind not in found:
            raise PayloadError("the records are not those of several payloads")
        found[kind].setdefault(name, {})[key] = value
    return {kind: {name: ConfigRecord(own) for name, own in named.items()} for kind, named in found.items()}


def _part(records: Mapping[str, Any], metadata: Any) -> Message:
    failure = records.get(_FAILURE)
    if failure is None:
        return make_message(metadata, RecordDict(dict(records)))
    if len(records) != 1 or not isinstance(failure, ConfigRecord) or type(failure.get("code")) is not int:
        raise PayloadError("a failure is not one")
    code = int(failure["code"])  # type: ignore[arg-type]
    return make_message(metadata, error=Error(code=code, reason=failure_sentence(code)))
