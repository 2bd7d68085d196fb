"""A site with its own enrolled key, against the SuperLink that really runs: what is another's, what was not asked."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree

from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import make_site_key
from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.processes import free_port
from fed_diffmic.transport.refusals import MALFORMED, NOT_ASKED, NOT_YOURS, RUN_UNKNOWN, TOO_LARGE
from fed_diffmic.transport.superlink import LinkSettings, RunningLink, start_superlink
from tests.trust.rawnode import Asking, RawNode, content, ids, refusal, request_of

MIB = 2**20
REPLY = 3 * MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forged")


@pytest.fixture(scope="module")
def link(folder: Path) -> Iterator[RunningLink]:
    authority = make_authority(folder / "ca")
    certificate, key = authority.issue_server([], [], folder / "server")
    roster = Roster()
    for name in ("aurum", "birch"):
        roster = roster.enrol(name, make_site_key(folder / name), "Hospital")
    settings = LinkSettings(
        folder=str(folder / "link"), host="127.0.0.1", port=free_port(), certificate=str(certificate), key=str(key),
        ca=str(authority.certificate_path), roster=str(roster.save(folder / "roster.json")),
        heartbeat_s=30.0, new_per_s=1e6,
    )  # fmt: skip
    settings = replace(settings, reply_bytes=REPLY, site_bytes=2 * REPLY)
    running = start_superlink(settings)
    try:
        control = Control(running)
        control.register([entry.public_key for entry in roster.sites])
        control.close()
        yield running
    finally:
        running.child.kill()


@pytest.fixture(scope="module")
def nodes(link: RunningLink, folder: Path) -> tuple[RawNode, RawNode]:
    return RawNode(link, folder / "aurum"), RawNode(link, folder / "birch")


@pytest.fixture
def asking(link: RunningLink) -> Iterator[Asking]:
    made = Asking(link)
    yield made
    made.end()


TABLES = (
    "objects", "object_children", "run_objects", "message_ins", "message_res", "object_push_sessions",
    "object_push_session_roots", "object_push_session_pending",
)  # fmt: skip


def stored(link: RunningLink) -> int:
    """What the database holds of messages: bytes of content, and a kilobyte for each row (its files grow in steps)."""
    with closing(sqlite3.connect(f"file:{link.settings.folder}/state.db?mode=ro", uri=True, timeout=30.0)) as database:
        (content_bytes,) = database.execute("select coalesce(sum(length(content)), 0) from objects").fetchone()
        rows = [database.execute(f"select count(*) from {table}").fetchone()[0] for table in TABLES]
    return int(content_bytes) + 1024 * sum(rows)


def say(refused: pytest.ExceptionInfo[httpx.HTTPStatusError]) -> str:
    return refusal(refused.value)


def test_a_forged_request_to_another_site_is_refused(nodes: tuple[RawNode, RawNode], asking: Asking) -> None:
    victim, evil = nodes
    for sender in (1, evil.id, victim.id):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            evil.push(request_of(victim.id), src_node_id=sender, run_id=asking.run_id)
        assert say(refused) == f"403 {NOT_YOURS.code}"
    asking.ask(victim.id)
    message = victim.take()  # the coordinator's own, and no other before it
    assert message.metadata.src_node_id == 1
    victim.push_all(Message(content(), reply_to=message))
    assert not asking.answered()[0].has_error()


def test_what_was_not_asked_is_refused(nodes: tuple[RawNode, RawNode], asking: Asking) -> None:
    victim, evil = nodes
    asking.ask(victim.id)
    asking.ask(evil.id)
    of_victim, own = victim.take(), evil.take()
    wrong = {
        "no request": ({"reply_to_message_id": ""}, NOT_ASKED),
        "one that there is not": ({"reply_to_message_id": "0" * 64}, NOT_ASKED),
        "another site's": ({"reply_to_message_id": of_victim.metadata.message_id}, NOT_ASKED),
        "in the name of another site": ({"src_node_id": victim.id}, NOT_YOURS),
        "to another site": ({"dst_node_id": victim.id}, NOT_YOURS),
        "of another run": ({"run_id": asking.run_id + 1}, RUN_UNKNOWN),
    }
    for name, (changed, kind) in wrong.items():
        with pytest.raises(httpx.HTTPStatusError) as refused:
            evil.push(Message(content(), reply_to=own), **changed)
        assert say(refused) == f"{kind.status} {kind.code}", name
    assert all(evil.push_all(Message(content(), reply_to=own)))
    assert [m.metadata.src_node_id for m in asking.answered()] == [evil.id]
    with pytest.raises(httpx.HTTPStatusError) as refused:  # answered already
        evil.push(Message(content(), reply_to=own))
    assert say(refused) == f"403 {NOT_ASKED.code}"
    assert all(victim.push_all(Message(content(), reply_to=of_victim)))
    assert {m.metadata.src_node_id for m in asking.answered(2)} == {evil.id, victim.id}


def test_objects_of_others_are_neither_read_nor_removed_nor_written(
    nodes: tuple[RawNode, RawNode], asking: Asking
) -> None:
    victim, evil = nodes
    asking.ask(victim.id)
    message, tree = victim.pull()
    run_id = asking.run_id
    for object_id in ids(tree):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            evil.pull_object(run_id, object_id)
        assert say(refused) == f"403 {NOT_YOURS.code}"
    with pytest.raises(httpx.HTTPStatusError) as refused:
        evil.confirm(run_id, message.metadata.message_id)
    assert say(refused) == f"403 {NOT_YOURS.code}"
    assert all(victim.fetch(run_id, object_id) for object_id in ids(tree))
    victim.confirm(run_id, message.metadata.message_id)
    reply = Message(content(), reply_to=message)
    answer = victim.push(reply)
    for session in (answer.session_id, ""):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            evil.push_object(run_id, session, answer.objects_to_push[0], b"x")
        assert say(refused) == f"403 {NOT_YOURS.code}"
    assert not evil.push_object(run_id, "no session", answer.objects_to_push[0], b"x")
    assert all(victim.push_all(reply))
    assert asking.answered()


def test_messages_to_oneself_leave_the_database_where_it_was(
    nodes: tuple[RawNode, RawNode], asking: Asking, link: RunningLink
) -> None:
    evil = nodes[1]
    asking.ask(evil.id)
    own = evil.take()
    before = stored(link)
    for _ in range(12):
        for changed in ({"src_node_id": 1}, {"src_node_id": evil.id}):
            with pytest.raises(httpx.HTTPStatusError):
                evil.push_all(request_of(evil.id, MIB), run_id=asking.run_id, **changed)
        answer = evil.push(Message(content(MIB), reply_to=own))  # announced and never delivered, each another
        assert answer.objects_to_push
    assert stored(link) - before < MIB


def test_replies_are_taken_up_to_their_bound(nodes: tuple[RawNode, RawNode], asking: Asking, link: RunningLink) -> None:
    evil = nodes[1]
    asking.ask(evil.id)
    own = evil.take()
    before = stored(link)
    for _ in range(4):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            evil.push_all(Message(content(REPLY + 10), reply_to=own))
        assert say(refused) == f"403 {TOO_LARGE.code}"
    assert stored(link) - before < MIB
    many = ObjectTree(children=[ObjectTree(object_id=f"{n:064x}") for n in range(5000)])
    with pytest.raises(httpx.HTTPStatusError) as refused:
        evil.push(Message(content(), reply_to=own), many)
    assert say(refused) == f"403 {TOO_LARGE.code}"
    for _ in range(6):  # half of a reply, again and again: each takes the place of the one before it
        reply = Message(content(2 * MIB), reply_to=own)
        answer = evil.push(reply)
        contents = {i: part for i, part in parts(reply).items() if len(part) > MIB}
        assert all(evil.push_object(asking.run_id, answer.session_id, i, part) for i, part in contents.items())
    assert stored(link) - before < REPLY
    assert all(evil.push_all(Message(content(2 * MIB), reply_to=own)))
    assert not asking.answered()[0].has_error()


def parts(message: Message) -> dict[str, bytes]:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def test_what_a_site_began_to_deliver_goes_with_its_request(
    nodes: tuple[RawNode, RawNode], asking: Asking, link: RunningLink
) -> None:
    evil = nodes[1]
    sizes = []
    for _ in range(4):
        asking.ask(evil.id, MIB, ttl=4.0)  # its content is never fetched, its reply never whole
        message, _ = evil.pull()
        reply = Message(content(2 * MIB), reply_to=message)
        answer = evil.push(reply)
        for name, part in parts(reply).items():
            if len(part) > MIB:
                evil.push_object(asking.run_id, answer.session_id, name, part)
        asking.forget()  # the coordinator goes on
        time.sleep(max(0.0, message.metadata.created_at + message.metadata.ttl - time.time()))
        sizes.append(stored(link))
    assert max(sizes) - min(sizes) < MIB, sizes


def test_malformed_bodies_are_refused_and_nothing_breaks(
    nodes: tuple[RawNode, RawNode], asking: Asking, link: RunningLink
) -> None:
    evil = nodes[1]
    asking.ask(evil.id)
    own = evil.take()
    good = PushMessagesRequest(node=evil.node, messages_list=[message_to_proto(Message(content(), reply_to=own))])
    draw = random.Random(5)
    whole = good.SerializeToString()
    deep = b""
    for _ in range(3000):
        deep = b"\x12" + varint(len(deep)) + deep  # a child of a child of ...
    bodies = [b"", *(draw.randbytes(draw.randrange(1, 400)) for _ in range(20))]
    bodies += [whole[: draw.randrange(len(whole))] for _ in range(12)]
    bodies += [flipped(whole, draw) for _ in range(20)]
    bodies += [b"\x0a" + varint(2**62) + b"x", b"\x22" + varint(len(deep)) + deep]
    paths = ("push-messages", "pull-object", "push-object", "confirm-message-received", "get-run", "get-fab")
    for n, body in enumerate(bodies):
        status = raw(evil, paths[n % len(paths)] if n % 3 else "push-messages", body)
        assert 400 <= status < 500 or status == 200, (n, status)
    for push in malformed(good, Message(content(), reply_to=own)):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            evil.client.PushMessages(push)
        assert say(refused) == f"400 {MALFORMED.code}"
    assert all(evil.push_all(Message(content(), reply_to=own)))
    assert asking.answered()


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def flipped(body: bytes, draw: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def raw(node: RawNode, path: str, body: bytes) -> int:
    """The status that a body of any bytes gets."""
    client = node.client
    request = client._client.build_request(
        "POST", f"{client._base_url}/v1/fleet/{path}", content=body, headers={"content-type": "application/protobuf"}
    )
    from flwr.supercore.protobuf.client import ProtobufRequestContext

    return client._send(ProtobufRequestContext("x", PushMessagesRequest(), request)).status_code


def malformed(good: PushMessagesRequest, reply: Message) -> Iterator[PushMessagesRequest]:
    """Announcements that can be read and mean nothing."""
    name = reply.object_id

    def with_tree(tree: ObjectTree, times: int = 1) -> PushMessagesRequest:
        push = PushMessagesRequest()
        push.CopyFrom(good)
        message = push.messages_list[0]
        message.content.Clear()
        message.content.SetInParent()
        message.metadata.message_id = tree.object_id
        push.message_object_trees.extend([tree] * times)
        return push

    leaf = ObjectTree(object_id="a" * 64)
    yield with_tree(ObjectTree(object_id=name), 0)
    yield with_tree(ObjectTree(object_id=name), 2)
    yield with_tree(ObjectTree(object_id="../../etc/passwd"))
    yield with_tree(ObjectTree(object_id=name, children=[leaf, leaf]))
    yield with_tree(ObjectTree(object_id=name, children=[ObjectTree(object_id=name)]))
    tree = leaf
    for depth in range(40):
        tree = ObjectTree(object_id=f"{depth:064x}", children=[tree])
    yield with_tree(tree)
    for change in ("created_at", "ttl"):
        push = with_tree(ObjectTree(object_id=name))
        setattr(push.messages_list[0].metadata, change, float("nan"))
        yield push
    push = with_tree(ObjectTree(object_id=name))
    push.messages_list[0].metadata.group_id = "x" * 100_000
    yield push
    push = with_tree(ObjectTree(object_id=name))
    push.messages_list[0].error.reason = "both"
    yield push
    push = with_tree(ObjectTree(object_id=name))
    push.clientapp_runtime_list.append(float("inf"))
    yield push


def test_a_run_that_is_not_known_is_said_so_by_every_call(nodes: tuple[RawNode, RawNode], asking: Asking) -> None:
    evil = nodes[1]
    unknown = asking.run_id ^ 1
    calls = (
        lambda: evil.push(Message(content(), reply_to=request_named(evil.id)), run_id=unknown),
        lambda: evil.push_object(unknown, "x", "0" * 64, b"x"),
        lambda: evil.pull_object(unknown, "0" * 64),
        lambda: evil.confirm(unknown, "0" * 64),
    )
    for call in calls:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            call()
        assert say(refused) == f"403 {RUN_UNKNOWN.code}"


def request_named(node: int) -> Message:
    message = request_of(node)
    message.metadata.__dict__["_message_id"] = message.object_id
    return message
