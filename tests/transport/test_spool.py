"""What is in hand survives on the disk, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_object_id

from fed_diffmic.transport.spool import OBJECTS, REPLY, REQUEST, Spool

CONTENT = b"what an object holds"
NAME = get_object_id(CONTENT)


def request(name: str = "m") -> PullMessagesResponse:
    message = Message(metadata=Metadata(message_id=name, run_id=7))
    return PullMessagesResponse(messages_list=[message], message_object_trees=[ObjectTree(object_id=NAME)])


def reply() -> PushAppMessagesRequest:
    message = Message(metadata=Metadata(message_id="r", reply_to_message_id="m"))
    return PushAppMessagesRequest(messages_list=[message], message_object_trees=[ObjectTree(object_id=NAME)])


def test_a_request_is_found_again_by_another_process_and_forgotten_once_delivered(tmp_path: Path) -> None:
    first = Spool(tmp_path / "inbox")
    assert first.request() is None
    first.begin(request())
    first.put(NAME, CONTENT)
    assert first.attempt() == 1
    again = Spool(tmp_path / "inbox")
    assert again.request() == request()
    assert again.get(NAME) == CONTENT
    assert again.attempt() == 2
    again.begin(request("next"))  # another request: nothing of the one before is left
    assert (again.attempts, again.get(NAME)) == (0, None)
    again.drop()
    assert first.request() is None
    assert (tmp_path / "inbox").stat().st_mode & 0o777 == 0o700


def test_a_reply_counts_while_all_its_objects_are_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.begin(request())
    spool.put(NAME, CONTENT)
    spool.keep_reply(reply())
    assert spool.has_reply()
    assert Spool(tmp_path).reply() == reply()
    (tmp_path / OBJECTS / NAME).unlink()
    assert spool.reply() is None
    assert not spool.has_reply()


def test_of_a_site_that_withdraws_only_the_request_is_left(tmp_path: Path) -> None:
    computed = b"what was computed"
    spool = Spool(tmp_path)
    spool.begin(request())
    spool.put(NAME, CONTENT)
    spool.put(get_object_id(computed), computed)
    (tmp_path / OBJECTS / "torn.part").write_bytes(computed[:3])
    spool.keep_reply(reply())
    spool.attempt()
    spool.drop_reply()
    assert [path.name for path in (tmp_path / OBJECTS).iterdir()] == [NAME]
    assert (spool.request(), spool.get(NAME), spool.has_reply(), spool.attempts) == (request(), CONTENT, False, 0)


def test_without_a_request_nothing_is_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(NAME, CONTENT)
    spool.drop_reply()
    assert list((tmp_path / OBJECTS).iterdir()) == []


@pytest.mark.parametrize("content", [b"", CONTENT[:5], b"something else"])
def test_an_object_that_is_torn_or_changed_is_not_there(content: bytes, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(NAME, content)
    assert spool.get(NAME) is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "x" * 64, NAME.upper() + "/"])
def test_a_name_that_is_no_digest_is_no_path(name: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "inbox")
    spool.put(name, CONTENT)
    assert spool.get(name) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_torn_request_or_reply_is_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / REQUEST).write_bytes(b"\xff\xff\xff")
    assert spool.request() is None
    assert not (tmp_path / REQUEST).exists()
    (tmp_path / REPLY).write_bytes(PushAppMessagesRequest().SerializeToString())
    assert spool.reply() is None
    assert not spool.has_reply()
