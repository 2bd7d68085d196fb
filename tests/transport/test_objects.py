"""Of how many objects a message is, by Flower's own taking apart, and that they are put together to the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

from fed_diffmic.exchange.payload import Limits, Payload, encode, pack
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import BUNDLE, from_record, reply_message
from fed_diffmic.transport.together import JUDGED, joined_message, joined_reply, parts_of

SMALL = {"w": np.linspace(-1, 1, 1000, dtype=np.float32), "n": np.array(3, np.int64)}
LARGE = {"w": np.arange(BUNDLE // 4, dtype=np.float32), "v": np.linspace(0, 1, 100, dtype=np.float32)}
AMPLE = Limits(tensor_bytes=1 << 26)


def travelled(message: Any) -> tuple[Any, set[str]]:
    """A message that was taken apart and put together as on its way, and the names of its objects."""
    set_message_id(message, message.object_id)
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    for content in contents.values():
        validate_object_content(content)  # as the SuperLink does
    names = set(contents)
    return inflate_object_from_contents(message.object_id, contents), names


def asked(tensors: dict[str, np.ndarray], seal: str = "") -> Any:
    evaluate = replace(encode(Payload("evaluate", {"round": 1}, tensors), pack(tensors)), seal=seal)
    return joined_message(
        {"evaluate": evaluate, "train": encode(Payload("train", {"round": 2}), pack({}))},
        node=1, message_type=JUDGED, ttl=60.0, group="1",
    )  # fmt: skip


@pytest.mark.parametrize(("tensors", "objects"), [(SMALL, 4), (LARGE, 8)])
def test_two_requests_and_their_weights_travel_as_few_objects_to_the_same_bits(
    tensors: dict[str, np.ndarray], objects: int
) -> None:
    message, names = travelled(asked(tensors))
    assert len(names) == objects
    parts = parts_of(message)
    got = from_record(parts["evaluate"].content, AMPLE)
    assert (got.kind, got.header) == ("evaluate", {"round": 1})
    assert {n: v.tobytes() for n, v in got.tensors.items()} == {n: v.tobytes() for n, v in tensors.items()}
    assert from_record(parts["train"].content, AMPLE).header == {"round": 2}
    metrics = reply_message(Payload("evaluate.reply", {}, {}, {"auroc": 0.5}), parts["evaluate"])
    update = reply_message(Payload("train.reply", {}, tensors), parts["train"])
    reply, names = travelled(joined_reply({"evaluate": metrics, "train": update}, message))
    assert len(names) == objects
    answers = parts_of(reply)
    assert from_record(answers["evaluate"].content, AMPLE).metrics == {"auroc": 0.5}
    got = from_record(answers["train"].content, AMPLE)
    assert {n: v.tobytes() for n, v in got.tensors.items()} == {n: v.tobytes() for n, v in tensors.items()}


def test_what_all_sites_are_sent_is_one_object() -> None:
    first, second = (travelled(asked(SMALL, seal))[1] for seal in ("a", "b"))
    assert len(first & second) == 1  # the tensors; message, records and headers differ
