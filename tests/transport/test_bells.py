"""A question is held until there is something to answer, and nothing is lost with whoever asked it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import time
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes, Run
from sqlalchemy import insert, select, update

from fed_diffmic.transport import bells as module
from fed_diffmic.transport.again import AGAIN, take_back
from fed_diffmic.transport.bells import Bells, receivers, ring_when_whole
from fed_diffmic.transport.pauses import Pauses
from fed_diffmic.transport.superlink_child import PULLS

NODE, RUN = 7, 3


class Asked:
    """One question: when the application saw it, and what was sent."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers, self.seen, self.left, self.status = answers, 0, asyncio.Event(), 200

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen += 1
        assert (await receive())["body"] == b"question"
        await send({"type": "http.response.start", "status": self.status})
        await send({"type": "http.response.body", "body": self.answers.pop(0)})

    async def ask(self, bells: Bells, node: int = NODE) -> float:
        """Seconds until it was answered."""
        empty = {"type": "http.request", "body": b"", "more_body": False}  # which is no end of the connection
        given = [empty, {**empty, "body": b"question"}]

        async def receive() -> Any:
            if given:
                return given.pop()
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        begun = time.monotonic()
        await bells.answer(node, self.app, {}, receive, send)
        return time.monotonic() - begun


def test_a_question_waits_for_the_bell_and_no_longer_than_it_may() -> None:
    async def all_of_it() -> None:
        bells, asked = Bells(20.0), Asked([b"", b"message", b"", b""])
        assert await asked.ask(bells) < 19.0  # nobody knows yet what is there
        asyncio.get_running_loop().call_later(0.1, bells.ring, NODE)
        asyncio.get_running_loop().call_later(0.05, bells.ring, NODE + 1)  # another's
        assert 0.09 < await asked.ask(bells) < 19.0
        assert await asked.ask(bells) < 19.0  # something came: there may be more
        bells.hold_s = 0.4
        assert await asked.ask(bells) > 0.39
        bells.hold_s = 20.0
        assert asked.seen == 4
        bells.ring(NODE)
        await asyncio.sleep(0)
        asked.status, asked.answers = 401, [b"", b"message"]
        assert await asked.ask(bells) < 19.0  # asked in the node's name by another one, who is refused
        asked.status = 200
        assert await asked.ask(bells) < 19.0  # and the node is answered as if nobody had asked

    asyncio.run(all_of_it())


def test_flower_asks_where_questions_are_held() -> None:
    from flwr.supernode.fleet_http_client import FleetHttpClient

    assert f'"{module.PULLS}"' in inspect.getsource(FleetHttpClient.PullMessages)
    assert f'"{PULLS}"' in inspect.getsource(RuntimeHttpClient.PullMessages)
    stored = inspect.getsource(SqlLinkState.store_object)  # a session ends when nothing of it is missing
    assert "if pending_count == 0:" in stored and "self._cleanup_push_session(session_id" in stored


def test_the_coordinators_question_is_held_no_longer_than_it_has_to_look_elsewhere() -> None:
    async def all_of_it() -> None:
        bells, asked = Bells(60.0), Asked([b"", b""])
        assert await asked.ask(bells, SUPERLINK_NODE_ID) < 1.9
        assert 1.9 < await asked.ask(bells, SUPERLINK_NODE_ID) < 30.0

    asyncio.run(all_of_it())


def test_a_superlink_that_ends_answers_what_it_holds() -> None:
    async def all_of_it() -> None:
        bells, asked = Bells(20.0), Asked([b"", b"", b""])
        await asked.ask(bells)
        asyncio.get_running_loop().call_later(0.1, bells.close)
        assert 0.09 < await asked.ask(bells) < 19.0
        assert await asked.ask(bells) < 19.0 and asked.seen == 3

    asyncio.run(all_of_it())


def test_nothing_is_given_out_to_whoever_is_gone() -> None:
    async def all_of_it() -> None:
        bells, asked = Bells(20.0), Asked([b"", b"message"])
        await asked.ask(bells)
        asyncio.get_running_loop().call_later(0.05, asked.left.set)
        assert await asked.ask(bells) < 19.0
        assert asked.seen == 1
        bells.ring(NODE)
        await asyncio.sleep(0)
        asked.left.clear()
        assert await asked.ask(bells) < 19.0  # the next one finds it at once
        assert asked.seen == 2

    asyncio.run(all_of_it())


def test_a_pause_is_shorter_by_what_the_question_waited() -> None:
    pauses = Pauses(0.5, 2.0, lambda: 0.0)
    pauses.waited(0.2)
    assert pauses.next() == pytest.approx(0.3)
    assert pauses.next() == 0.5
    pauses.waited(9.0)
    assert pauses.next() == 0.0


def named(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def state(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> SqlLinkState:
    for name in ("store_object", "_cleanup_push_session"):  # what is installed is this test's alone
        monkeypatch.setattr(SqlLinkState, name, getattr(SqlLinkState, name))
    store = SqlObjectStore(str(tmp_path / "state.db"))
    store.initialize()
    found = SqlLinkState(str(tmp_path / "state.db"), SimpleNamespace(), store)  # type: ignore[arg-type]
    found.initialize()
    with found.session() as session:
        session.execute(insert(Run).values(run_id=RUN, primary_task_id=1))
    return found


def request(state: SqlLinkState, name: str, delivered: str = "", ttl: float = 60.0) -> None:
    with state.session() as session:
        row = {"message_id": name, "run_id": RUN, "src_node_id": 1, "dst_node_id": NODE, "group_id": ""}
        row |= {"created_at": time.time(), "ttl": ttl, "delivered_at": delivered, "message_type": "train"}
        columns = {column.name for column in MessageIns.__table__.columns}
        session.execute(insert(MessageIns).values({k: v for k, v in row.items() if k in columns}))


def test_the_bell_rings_once_the_last_object_is_stored(state: SqlLinkState) -> None:
    rung: list[int] = []
    ring_when_whole(SimpleNamespace(ring=rung.append))  # type: ignore[arg-type]
    leaf, root = b"ConfigRecord  1\x00x", b"Message  1\x00y"
    names = [get_object_id(root), get_object_id(leaf)]
    for asked, node in ((True, NODE), (False, SUPERLINK_NODE_ID)):
        if asked:
            request(state, names[0])
        session = state.start_session(RUN)
        tree = ObjectTree(object_id=names[0], children=[ObjectTree(object_id=names[1])])
        state.object_store.verify = False  # type: ignore[attr-defined]
        assert set(state.preregister_object_tree(tree, session)) == set(names)
        assert receivers(state, session) == {node}
        assert state.store_object(RUN, session, names[0], root)
        assert rung == []
        assert state.store_object(RUN, session, names[1], leaf)
        assert rung == [node]
        rung.clear()
        names = [named("another"), named("leaf")]


def test_a_request_that_was_never_confirmed_is_handed_out_again(
    state: SqlLinkState, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = SimpleNamespace(status="running")
    monkeypatch.setattr(SqlLinkState, "get_run_status", lambda self, runs: dict.fromkeys(runs, running))
    texts = ("lost", "confirmed", "answered", "late", "waiting")
    for text in texts:
        request(state, named(text), "" if text == "waiting" else "2026-01-01", 0.0 if text == "late" else 60.0)
        state.object_store.preregister(RUN, ObjectTree(object_id=named(text)))
    state.object_store.delete(named("confirmed"))
    with state.session() as session:
        session.execute(insert(MessageRes).values(message_id="reply", reply_to_message_id=named("answered")))

    def open_now() -> set[str]:
        with state.session() as session:
            found = set(session.scalars(select(MessageIns.message_id).where(MessageIns.delivered_at == "")))
            session.execute(update(MessageIns).values(delivered_at="2026-01-01"))
            return {text for text in texts if named(text) in found}

    given: OrderedDict[str, int] = OrderedDict()
    take_back(state, NODE + 1, given)
    assert open_now() == {"waiting"}
    state.object_store.delete(named("waiting"))
    for _ in range(AGAIN):
        take_back(state, NODE, given)
        assert open_now() == {"lost"}
    take_back(state, NODE, given)
    assert open_now() == set()  # not without end
    running.status = "finished"
    take_back(state, NODE, OrderedDict())
    assert open_now() == set()
