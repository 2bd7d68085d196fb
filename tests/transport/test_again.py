"""What is handed out again is looked at where it is written."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.state.schema.linkstate_models import MessageIns
from sqlalchemy import select

from fed_diffmic.transport.again import take_back
from tests.transport.test_bells import NODE, RUN, named, request, state

__all__ = ["state"]


def test_a_request_that_is_confirmed_meanwhile_is_not_handed_out_again(
    state: SqlLinkState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower, which finds no content of it, would forget the request, and refuse what the site computed for it."""
    name = named("slow")
    request(state, name, "2026-01-01")
    state.object_store.preregister(RUN, ObjectTree(object_id=name))

    def status(self: SqlLinkState, runs: Any) -> Any:
        state.object_store.delete(name)  # the confirmation comes between the look and the mark
        return dict.fromkeys(runs, SimpleNamespace(status="running"))

    monkeypatch.setattr(SqlLinkState, "get_run_status", status)
    take_back(state, NODE, OrderedDict())
    with state.session() as session:
        assert session.scalar(select(MessageIns.delivered_at).where(MessageIns.message_id == name)) == "2026-01-01"
