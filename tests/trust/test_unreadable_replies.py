"""A site with its own enrolled key delivers content that nobody can read, or that says it answers another's request."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from fed_diffmic.transport.superlink import RunningLink
from tests.trust.rawnode import Asking, RawNode, named_message
from tests.trust.test_foreign_messages import asking, folder, link, nodes

__all__ = ["asking", "folder", "link", "nodes"]


def replaced(message: Message, kind: bytes, old: bytes, new: bytes) -> tuple[ObjectTree, dict[str, bytes]]:
    """A message's objects with the bytes of one kind changed, and every name above it made right again."""
    contents, named = named_message(message)
    tree = get_object_tree(named)

    def renew(node: ObjectTree) -> None:
        content = contents[node.object_id]
        for child in node.children:
            before = child.object_id
            renew(child)
            content = content.replace(before.encode(), child.object_id.encode())
        if content.startswith(kind + b" "):
            assert old in content
            content = content.replace(old, new)
        node.object_id = hashlib.sha256(content).hexdigest()
        contents[node.object_id] = content

    renew(tree)
    return tree, contents


def deliver(node: RawNode, message: Message, tree: ObjectTree, contents: dict[str, bytes]) -> None:
    """Announce the message under the name that its objects have, and push them."""
    proto = message_to_proto(Message(RecordDict(), reply_to=message))
    proto.metadata.message_id = tree.object_id
    answer = node.client.PushMessages(
        PushMessagesRequest(
            node=node.node, messages_list=[proto], message_object_trees=[tree], clientapp_runtime_list=[0.0]
        )
    )
    for name in answer.objects_to_push:
        assert node.push_object(message.metadata.run_id, answer.session_id, name, contents[name])


def answer(size: int) -> RecordDict:
    return RecordDict({"a": ArrayRecord({"x": Array("uint8", (size,), "raw", bytes(size))}), "c": ConfigRecord({})})


@pytest.fixture
def asked(nodes: tuple[RawNode, RawNode], asking: Asking) -> tuple[RawNode, Message, RawNode, Message]:
    honest, evil = nodes
    asking.ask(honest.id)
    asking.ask(evil.id)
    return honest, honest.take(), evil, evil.take()


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (b"Array", b'"arraychunk_ids": [0]', b'"arraychunk_ids": [7]'),
        (b"Array", b'"shape": [9]', b'"shape": ["]'),
        (b"ArrayRecord", b'{"x"', b'[["x'),
    ],
)
def test_content_that_cannot_be_read_is_that_sites_reply_and_the_others_are_heard(
    asked: tuple[RawNode, Message, RawNode, Message], asking: Asking, kind: bytes, old: bytes, new: bytes
) -> None:
    honest, its, evil, own = asked
    deliver(evil, own, *replaced(Message(answer(9), reply_to=own), kind, old, new))
    assert all(honest.push_all(Message(answer(9), reply_to=its)))
    replies = {reply.metadata.src_node_id: reply for reply in asking.answered(2)}
    assert list(replies[evil.id].content) == []
    assert replies[evil.id].metadata.reply_to_message_id == own.metadata.message_id
    assert list(replies[honest.id].content) == ["a", "c"]


def test_a_reply_answers_what_the_superlink_took_it_for(
    asked: tuple[RawNode, Message, RawNode, Message], asking: Asking, link: RunningLink, folder: Path
) -> None:
    honest, its, evil, own = asked
    other = its.metadata.message_id.encode()
    tree, contents = replaced(Message(answer(9), reply_to=own), b"Message", own.metadata.message_id.encode(), other)
    deliver(evil, own, tree, contents)
    (reply,) = asking.answered()
    assert reply.metadata.reply_to_message_id == own.metadata.message_id
    assert reply.metadata.src_node_id == evil.id
    assert all(honest.push_all(Message(answer(9), reply_to=its)))
    assert {r.metadata.reply_to_message_id for r in asking.answered(2)} == {
        own.metadata.message_id,
        its.metadata.message_id,
    }
