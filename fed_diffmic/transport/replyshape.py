"""Whether what a node pushes can be read, and how many objects it announces: judged before anything is stored."""

from __future__ import annotations

import math
from typing import Any

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import is_valid_sha256_hash

from fed_diffmic.transport.refusals import MALFORMED, TOO_LARGE, refused

DEPTH = 16  # a message's content has five levels
TEXT = 512
REASON = 16_384
SECONDS = 1e10


def one_reply(request: PushMessagesRequest, objects: int) -> tuple[Any, ObjectTree]:
    """The one message of a push, without content, and the tree of its objects.

    Args:
        request: of a node.
        objects: at most so many may be announced.

    Returns:
        Flower's ``Message`` (protobuf) and ``ObjectTree``.

    Raises:
        FlowerError: it is neither one message nor one that can be stored, or too many objects.
    """
    node = request.node.node_id
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise refused(MALFORMED, node, "not one message with one tree of objects")
    if len(request.clientapp_runtime_list) > 1 or not all(0 <= s < SECONDS for s in request.clientapp_runtime_list):
        raise refused(MALFORMED, node, "no duration")
    message, tree = request.messages_list[0], request.message_object_trees[0]
    metadata = message.metadata
    if message.HasField("content") == message.HasField("error") or len(message.content.items):
        raise refused(MALFORMED, node, "a message holds an error or content, and that apart from it")
    texts = (metadata.group_id, metadata.message_type, metadata.reply_to_message_id)
    if any(len(text) > TEXT for text in texts) or not metadata.message_type or len(message.error.reason) > REASON:
        raise refused(MALFORMED, node, "a text is too long")
    if not all(math.isfinite(s) and 0 < s < SECONDS for s in (metadata.created_at, metadata.ttl)):
        raise refused(MALFORMED, node, "no time")
    if metadata.message_id != tree.object_id:
        raise refused(MALFORMED, node, "the tree of objects is another message's")
    _check_tree(tree, node, objects)
    return message, tree


def _check_tree(tree: ObjectTree, node: int, most: int) -> None:
    """Every name a digest, the same children wherever a name stands, not too deep, not too many."""
    children: dict[str, tuple[str, ...]] = {}
    level, count = [tree], 0
    for _ in range(DEPTH):
        count += len(level)
        if count > most:
            raise refused(TOO_LARGE, node, f"more than {most} objects")
        for part in level:
            below = tuple(child.object_id for child in part.children)
            if not is_valid_sha256_hash(part.object_id) or len(set(below)) != len(below):
                raise refused(MALFORMED, node, "a tree of objects that is none")
            if children.setdefault(part.object_id, below) != below:
                raise refused(MALFORMED, node, "an object with two lists of children")
        level = [child for part in level for child in part.children]
        if not level:
            return
    raise refused(MALFORMED, node, "a tree of objects without end")
