"""A reply counts as there once all of its content is, on Flower's own store."""

import hashlib
from types import SimpleNamespace

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.linkstate_models import MessageRes
from sqlalchemy import func, insert, select

from fed_diffmic.transport.complete import begun, complete_replies, lacks_content, make_way


def name(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def store(tmp_path):
    store = SqlObjectStore(str(tmp_path / "state.db"), verify=False)
    store.initialize()
    leaves = [ObjectTree(object_id=name("array")), ObjectTree(object_id=name("figures"))]
    middle = ObjectTree(object_id=name("records"), children=leaves)
    store.preregister(1, ObjectTree(object_id=name("message"), children=[middle]))
    return store


def test_a_reply_lacks_content_until_the_last_object_came(store):
    for text in ("message", "records", "figures", "array"):
        assert lacks_content(store, name("message"))
        store.put(name(text), b"x")
    assert not lacks_content(store, name("message"))


def test_a_reply_that_flower_made_itself_has_none(store):
    assert not lacks_content(store, name("unknown"))


def test_nothing_is_asked_of_the_database_for_no_request():
    assert begun(None, set()) == set()


def replied(message):
    """As Flower hands it out: a reply to ``question``, or one that Flower made itself (no name)."""
    return SimpleNamespace(metadata=SimpleNamespace(message_id=message, reply_to_message_id=f"question {message}"))


def test_a_reply_announced_between_the_look_and_the_claim_is_given_back(store, tmp_path):
    state = SqlLinkState(str(tmp_path / "state.db"), SimpleNamespace(), store)
    state.initialize()
    half, whole = name("message"), name("whole")
    store.preregister(1, ObjectTree(object_id=whole))
    store.put(whole, b"x")
    claims = []

    def claim(ids):
        claims.append(ids)
        with state.session() as session:
            for n, _ in enumerate(sorted(ids)):
                session.execute(insert(MessageRes).values(message_id=f"row {len(claims)} {n}"))
        return [replied(m) for m in (half, whole, "") if f"question {m}" in ids]

    def rows():
        with state.session() as session:
            return session.scalar(select(func.count()).select_from(MessageRes))

    asked = {f"question {m}" for m in (half, whole, "")}
    got = complete_replies(state, asked, claim)
    assert [m.metadata.message_id for m in got] == [whole, ""]
    assert claims == [asked, asked - {f"question {half}"}]
    assert rows() == 2  # what the first claim wrote was undone
    for text in ("message", "records", "figures", "array"):
        store.put(name(text), b"x")
    assert [m.metadata.message_id for m in complete_replies(state, asked, claim)] == [half, whole, ""]
    assert len(claims) == 3


@pytest.mark.parametrize(
    ("whole", "node", "delivered", "stays"),
    [(False, 7, "", False), (True, 7, "", True), (False, 8, "", True), (False, 7, "2026-01-01", True)],
)
def test_another_reply_takes_the_place_of_one_that_its_site_never_finished(
    store, tmp_path, whole, node, delivered, stays
):
    state = SqlLinkState(str(tmp_path / "state.db"), SimpleNamespace(), store)
    state.initialize()
    store.put(name("array"), b"x")
    if whole:
        for text in ("message", "records", "figures"):
            store.put(name(text), b"x")
    with state.session() as session:
        row = {"reply_to_message_id": "question", "src_node_id": 7, "delivered_at": delivered}
        session.execute(insert(MessageRes).values(message_id=name("message"), **row))

    def say(message):
        make_way(state, SimpleNamespace(metadata=SimpleNamespace(
            message_id=message, reply_to_message_id="question", src_node_id=node)))  # fmt: skip
        with state.session() as session:
            return session.scalar(select(func.count()).select_from(MessageRes)) == 1

    assert say(name("message"))  # the same one again is a retry
    assert say(name("another")) == stays
    assert (store.get(name("array")) is not None) == stays
