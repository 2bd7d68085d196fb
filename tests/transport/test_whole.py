"""A reply counts as there once all of its content is, on Flower's own store."""

import hashlib

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from fed_diffmic.transport.whole import begun, lacks_content


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
