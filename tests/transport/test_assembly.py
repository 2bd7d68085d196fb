"""Messages are put together from their objects a few at a time: to the same bits, in little memory, from strangers."""

from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents

from fed_diffmic.exchange.payload import Limits, Payload, encode
from fed_diffmic.transport import assembly
from fed_diffmic.transport.assembly import AT_ONCE, DESCRIPTION, MalformedError, content_of, push_few
from fed_diffmic.transport.identity import ensure_task_identity
from fed_diffmic.transport.messages import from_record, to_record

MIB = 2**20
AMPLE = 2**30


def message_of(content: RecordDict) -> Any:
    ensure_task_identity()
    return Message(content, dst_node_id=1, message_type="train", ttl=60.0)


def apart(content: RecordDict) -> tuple[ObjectTree, dict[str, bytes]]:
    message = message_of(content)
    return get_object_tree(message), {n: part.deflate() for n, part in get_all_nested_objects(message).items()}


def records() -> RecordDict:
    """Every kind of record; an array of zeros (one chunk several times), an empty one, and one twice."""
    chance = np.random.default_rng(0)
    large = Array("uint8", (45 * MIB,), "raw", bytes(45 * MIB))
    some = [Array("uint8", (size,), "raw", chance.bytes(size)) for size in (1, 3 * MIB, 21 * MIB)]
    empty = Array("uint8", (0,), "raw", b"")
    arrays = {str(n): array for n, array in enumerate([large, *some, empty, some[0]])}
    return RecordDict(
        {"a": ArrayRecord(arrays), "c": ConfigRecord({"x": b"bytes", "y": [1, 2]}), "m": MetricRecord({"v": 0.5})}
    )


def test_what_is_put_together_is_what_flower_puts_together() -> None:
    tree, contents = apart(records())
    found = content_of(tree, contents.__getitem__, AMPLE)
    whole: Any = inflate_object_from_contents(tree.object_id, dict(contents))
    assert found.object_id == whole.content.object_id
    assert [array.data for array in found["a"].values()] == [array.data for array in whole.content["a"].values()]  # type: ignore[union-attr]
    assert found["c"] == whole.content["c"]
    assert found["m"] == whole.content["m"]


def test_a_payload_comes_through_whole() -> None:
    tensors = {"w": np.arange(3 * MIB, dtype=np.float32), "v": np.linspace(0, 1, 100, dtype=np.float32)}
    tree, contents = apart(to_record(encode(Payload("train", {"round": 1}, tensors))))
    got = from_record(content_of(tree, contents.__getitem__, AMPLE), Limits(AMPLE))
    assert {n: v.tobytes() for n, v in got.tensors.items()} == {n: v.tobytes() for n, v in tensors.items()}


def test_of_a_large_message_one_array_is_in_memory_twice() -> None:
    """Sixteen arrays of 8 MiB: their bytes once, of AT_ONCE of them the chunks too, and no message beside it."""
    chance = np.random.default_rng(1)
    arrays = {str(n): Array("uint8", (8 * MIB,), "raw", chance.bytes(8 * MIB)) for n in range(16)}
    tree, contents = apart(RecordDict({"a": ArrayRecord(arrays)}))
    del arrays

    def pull(name: str) -> bytes:
        return bytes(bytearray(contents[name]))  # bytes of their own, as from a connection

    tracemalloc.start()
    content_of(tree, pull, AMPLE)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < (16 + AT_ONCE + 2) * 8 * MIB


def test_objects_are_taken_apart_a_few_at_a_time() -> None:
    message = message_of(records())
    objects = get_all_nested_objects(message)
    contents = {name: part.deflate() for name, part in objects.items()}
    lacking = [name for name in contents if name != message.object_id]
    pushed: dict[str, bytes] = {}
    held: list[int] = []
    lock = threading.Lock()

    def push(name: str, content: bytes) -> None:
        with lock:
            pushed[name] = content
            held.append(len(objects))

    push_few(objects, lacking, push)
    assert pushed == {name: contents[name] for name in lacking}
    assert objects == {}
    assert held[-1] <= AT_ONCE < held[0]


def headed(kind: str, children: list[str], body: bytes) -> bytes:
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body


def named(tree: ObjectTree, contents: dict[str, bytes], kind: str) -> tuple[str, list[str]]:
    """The first object of a kind, and its children."""
    nodes = [tree]
    while nodes:
        node = nodes.pop(0)
        if contents[node.object_id].startswith(kind.encode() + b" "):
            return node.object_id, [child.object_id for child in node.children]
        nodes += list(node.children)
    raise LookupError(kind)


def said(**changed: Any) -> bytes:
    return json.dumps({"dtype": "uint8", "shape": [5], "stype": "raw", "arraychunk_ids": [0], **changed}).encode()


Spoil = Callable[[list[str]], bytes]
SPOILT: dict[str, tuple[str, Spoil]] = {
    "an array whose description is no JSON": ("Array", lambda c: headed("Array", c, b"{")),
    "an array without a description": ("Array", lambda c: headed("Array", c, b"")),
    "a description that is a list": ("Array", lambda c: headed("Array", c, b"[]")),
    "a description that lacks the order": ("Array", lambda c: headed("Array", c, b'{"dtype":"uint8"}')),
    "a chunk that is not there": ("Array", lambda c: headed("Array", c, said(arraychunk_ids=[9]))),
    "an order that is a word": ("Array", lambda c: headed("Array", c, said(arraychunk_ids=["x"]))),
    "a shape that is a word": ("Array", lambda c: headed("Array", c, said(shape=["x"]))),
    "a description without end": ("Array", lambda c: headed("Array", c, said(stype="x" * 2 * DESCRIPTION))),
    "other children than the tree's": ("Array", lambda c: headed("Array", ["0" * 64], said())),
    "no head": ("Array", lambda c: b"Array"),
    "a head of two words": ("Array", lambda c: b"Array x\0"),
    "a record that is an array": ("ArrayRecord", lambda c: headed("Array", c, said())),
    "a record of other arrays": ("ArrayRecord", lambda c: headed("ArrayRecord", c, b'{"a":"b"}')),
    "a record of a class that is not known": ("ArrayRecord", lambda c: headed("Pickle", c, b"")),
    "a chunk that is a message": ("ArrayChunk", lambda c: headed("Message", c, b"")),
    "a chunk with children": ("ArrayChunk", lambda c: headed("ArrayChunk", ["0" * 64], b"")),
    "content that is a list of metrics": ("RecordDict", lambda c: headed("MetricRecord", [], b"")),
    "content that is no protocol buffer": ("RecordDict", lambda c: headed("RecordDict", c, b"\xff" * 9)),
    "settings that are no protocol buffer": ("ConfigRecord", lambda c: headed("ConfigRecord", [], b"\xff" * 9)),
}


def few() -> RecordDict:
    return RecordDict({"a": ArrayRecord({"x": Array("uint8", (5,), "raw", b"12345")}), "c": ConfigRecord({"x": 1})})


@pytest.mark.parametrize("what", SPOILT)
def test_objects_that_are_not_a_messages_are_malformed_and_nothing_else(what: str) -> None:
    kind, spoil = SPOILT[what]
    tree, contents = apart(few())
    assert content_of(tree, contents.__getitem__, AMPLE).object_id == few().object_id
    name, children = named(tree, contents, kind)
    spoilt = {**contents, name: spoil(children)}
    with pytest.raises(MalformedError):
        content_of(tree, spoilt.__getitem__, AMPLE)


def test_an_array_that_names_a_chunk_without_end_is_not_put_together() -> None:
    tree, contents = apart(RecordDict({"a": ArrayRecord({"x": Array("uint8", (MIB,), "raw", bytes(MIB))})}))
    name, children = named(tree, contents, "Array")
    often = {**contents, name: headed("Array", children, said(arraychunk_ids=[0] * 100_000))}
    tracemalloc.start()
    with pytest.raises(MalformedError):
        content_of(tree, often.__getitem__, 4 * MIB)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 * MIB


def test_many_arrays_together_are_bounded_as_one_is() -> None:
    chance = np.random.default_rng(2)
    tree, contents = apart(
        RecordDict({"a": ArrayRecord({str(n): Array("uint8", (MIB,), "raw", chance.bytes(MIB)) for n in range(5)})})
    )
    assert len(content_of(tree, contents.__getitem__, 5 * MIB)["a"]) == 5
    with pytest.raises(MalformedError):
        content_of(tree, contents.__getitem__, 5 * MIB - 1)


@pytest.mark.parametrize("kind", ["RecordDict", "ArrayRecord", "ConfigRecord", "Array", "ArrayChunk"])
def test_what_takes_many_times_its_bytes_to_be_read_is_refused_unread(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of empty lists takes twenty times its bytes; a reply may bring a gigabyte. So may a head of commas."""
    tree, contents = apart(few())
    name, children = named(tree, contents, kind)
    monkeypatch.setattr(assembly, "RECORDS", 3 * MIB)
    size = 4 * MIB
    bodies = {"ConfigRecord": b"\x0a\x00" * (size // 2), "Array": b"[" + b"[]," * (size // 3) + b"[]]"}
    spoilt = headed(kind, children, bodies.get(kind, bodies["Array"]))
    if kind == "ArrayChunk":
        spoilt = f"{kind} {',' * size} 1".encode() + b"\0x"
    contents = {**contents, name: spoilt}
    tracemalloc.start()
    with pytest.raises(MalformedError):
        content_of(tree, contents.__getitem__, AMPLE)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < size


def test_an_error_of_the_way_is_not_the_contents() -> None:
    tree, contents = apart(few())
    name, _ = named(tree, contents, "ArrayChunk")

    def pull(asked: str) -> bytes:
        if asked == name:
            raise ObjectPullError(asked, "gone")
        return contents[asked]

    with pytest.raises(ObjectPullError):
        content_of(tree, pull, AMPLE)


@pytest.mark.parametrize("children", [0, 2])
def test_a_message_has_one_content(children: int) -> None:
    tree, contents = apart(few())
    other = ObjectTree(object_id=hashlib.sha256(b"m").hexdigest(), children=[tree.children[0]] * children)
    with pytest.raises(MalformedError):
        content_of(other, {**contents, other.object_id: b"Message  0\0"}.__getitem__, AMPLE)
