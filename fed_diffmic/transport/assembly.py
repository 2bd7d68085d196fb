"""A message is put together from its objects, an array at a time, and taken apart a few objects at a time.

Flower brings all objects of all messages that are there before it hands out the first, joins them beside what it joined
them from, and takes a message apart into a queue that holds it once more: with the weights of a large model, twice
each message's bytes for every site whose reply came at the same time. Here a message's bytes are there once, and
one array's twice, one message after the other.

What an object holds was written by the other side. A content that is not one of a message's gives
:class:`MalformedError`, never another error; an array may name a chunk more than once, but no message may become
larger than what it is allowed to bring, and what is no array, whose reading takes many times its bytes, has a bound of
its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

from flwr.app import Array, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry, pull_objects, push_objects

AT_ONCE = 4
"""Objects that are pulled, or taken apart to be pushed, before the next are (Flower's chunks have at most 20 MB)."""
DESCRIPTION = 2**20
"""Bytes of what an array says of itself: enough for hundreds of thousands of chunks."""
RECORDS = 32 * 2**20
"""Bytes of all objects of a message but its arrays: a header, a table of tensors, and the small tensors."""
_HEAD, _NAME = 128, 65
_ARRAY, _CHUNK = Array.__qualname__, ArrayChunk.__qualname__

Pull = Callable[[str], bytes]


class MalformedError(Exception):
    """The objects are not those of a message's content."""


def content_of(tree: ObjectTree, pull: Pull, most: int) -> RecordDict:
    """The content of a message.

    Args:
        tree: of the message's objects; the message itself has one child.
        pull: an object's bytes by its name; called from several threads.
        most: bytes that all arrays together may have.

    Raises:
        MalformedError: it is not one, or is larger.
        ObjectPullError: an object is not there.
        Exception: whatever ``pull`` raises.
    """
    if len(tree.children) != 1:
        raise MalformedError
    stems = _pulled((node.object_id for node in iterate_object_tree(tree) if node.children), pull)
    with _judged():
        kinds = {node.object_id: _kind(stems, node) for node in iterate_object_tree(tree)}
        arrays = {node.object_id: node for node in iterate_object_tree(tree) if kinds[node.object_id] == _ARRAY}
    small = (
        child.object_id
        for node in iterate_object_tree(tree)
        if node.children and node.object_id not in arrays
        for child in node.children
        if not child.children
    )
    contents = {**stems, **_pulled(small, pull)}
    with _judged():
        _check_sizes(tree, contents, arrays)
    found: dict[str, InflatableObject] = {}
    for few in _groups(arrays.values()):
        chunks = _pulled((child.object_id for node in few for child in node.children), pull)
        while few:
            with _judged():
                node = few.pop()
                found[node.object_id] = array = _array(node, contents.pop(node.object_id), chunks, most)
                most -= len(array.data)
    with _judged():
        content = _built(tree.children[0], contents, found)
    if not isinstance(content, RecordDict):
        raise MalformedError
    return content


def push_few(objects: dict[str, InflatableObject], wanted: Iterable[str], push: Callable[[str, bytes], None]) -> None:
    """Push objects, each taken apart when it is its turn, and dropped.

    Args:
        objects: by their names; empty afterwards.
        wanted: of them those that the other side lacks.
        push: an object's name and bytes; called from several threads.
    """
    lacking = set(wanted)
    names = iter([name for name in objects if name in lacking])
    while few := list(islice(names, AT_ONCE)):
        push_objects({name: objects.pop(name) for name in few}, push)
    objects.clear()


@contextmanager
def _judged() -> Iterator[None]:
    """Whatever goes wrong in reading what another side wrote is that side's."""
    try:
        yield
    except MalformedError:
        raise
    except Exception as error:
        raise MalformedError from error


def _pulled(names: Iterable[str], pull: Pull) -> dict[str, bytes]:
    """Objects, each once."""
    each = list(dict.fromkeys(names))
    return pull_objects(each, pull) if each else {}


def _kind(contents: Mapping[str, bytes], node: ObjectTree) -> str:
    """Of what class an object says it is; empty: it is not at hand."""
    content = contents.get(node.object_id)
    return "" if content is None else _head(content, len(node.children))[0]


def _check_sizes(tree: ObjectTree, contents: Mapping[str, bytes], arrays: Mapping[str, ObjectTree]) -> None:
    """Refuse, unread, objects that describe more than a message has.

    Raises:
        MalformedError: an array's description, or all other objects together, are too large.
    """
    children = {node.object_id: len(node.children) for node in iterate_object_tree(tree)}
    sizes = {name: len(content) - children[name] * _NAME for name, content in contents.items()}
    described = max((sizes[name] for name in arrays), default=0)
    if described > DESCRIPTION or sum(size for name, size in sizes.items() if name not in arrays) > RECORDS:
        raise MalformedError


def _head(content: bytes, children: int) -> tuple[str, list[str]]:
    """Class and children of an object, as its head says; one of so many children has no longer head."""
    end = content.find(HEAD_BODY_DIVIDER, 0, _HEAD + children * _NAME)
    if end < 0:
        raise MalformedError
    kind, names, _ = get_object_head_values_from_object_content(content[: end + 1])
    return kind, names


def _groups(arrays: Iterable[ObjectTree]) -> Iterator[list[ObjectTree]]:
    """Arrays whose chunks are pulled together: some small ones, or a large one."""
    few: list[ObjectTree] = []
    size = 0
    for node in arrays:
        if few and size + len(node.children) > AT_ONCE:
            yield few
            few, size = [], 0
        few.append(node)
        size += len(node.children)
    if few:
        yield few


def _array(node: ObjectTree, content: bytes, chunks: Mapping[str, bytes], most: int) -> Array:
    """An array of its description and its chunks."""
    _, names = _head(content, len(node.children))
    said = json.loads(_body(content).tobytes())
    bodies = {name: _chunk(chunks[name]) for name in names}
    wanted = [bodies[names[int(n)]] for n in said["arraychunk_ids"]]
    if sum(len(body) for body in wanted) > most:
        raise MalformedError
    return Array(str(said["dtype"]), tuple(int(n) for n in said["shape"]), str(said["stype"]), b"".join(wanted))


def _chunk(content: bytes) -> memoryview:
    """A chunk's bytes, not copied."""
    kind, names = _head(content, 0)
    if kind != _CHUNK or names:
        raise MalformedError
    return _body(content)


def _body(content: bytes) -> memoryview:
    """What stands behind an object's head, not copied."""
    return memoryview(content)[content.index(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]


def _built(node: ObjectTree, contents: dict[str, bytes], found: dict[str, InflatableObject]) -> InflatableObject:
    """An object of its content and its children; one that stands in several places is one."""
    if node.object_id not in found:
        children = {child.object_id: _built(child, contents, found) for child in node.children}
        content = contents.pop(node.object_id)
        kind, _ = _head(content, len(node.children))
        found[node.object_id] = inflatable_class_registry[kind].inflate(content, children=children)
    return found[node.object_id]
