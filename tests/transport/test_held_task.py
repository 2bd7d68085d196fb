"""A worker's question for a task waits at its own SuperNode until there is a whole one, and no longer than it may."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse

from fed_diffmic.transport import nodestate
from fed_diffmic.transport.nodestate import Handlers
from fed_diffmic.transport.spool import Spool


class Node:
    """A SuperNode's state: whether a task waits, and whether its content still comes."""

    def __init__(self) -> None:
        self.waits, self.content_comes, self.calls = False, False, 0

    def seen(self) -> None:
        self.calls += 1

    def put_back(self) -> None:
        pass

    def pending(self) -> bool:
        return self.waits

    def comes(self) -> bool:
        return self.content_comes


def ask(node: Any, spool: Spool, hold_s: float) -> tuple[str, float]:
    begun = time.monotonic()
    answer = Handlers(spool, hold_s).acquire_task(AcquireTaskRequest(), node)
    return str(answer.token), time.monotonic() - begun


def test_a_workers_question_waits_for_a_whole_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(_: Any, node: Node) -> AcquireTaskResponse:
        return AcquireTaskResponse(token="token" if node.waits else "")

    monkeypatch.setattr(nodestate, "runtime_handlers", SimpleNamespace(acquire_task=given))
    node, spool = Node(), Spool(tmp_path)
    assert ask(node, spool, 0.0) == ("", pytest.approx(0.0, abs=5.0))
    token, took = ask(node, spool, 0.3)
    assert (token, took >= 0.3) == ("", True)

    def arrive() -> None:
        time.sleep(0.1)
        node.content_comes = node.waits = True
        time.sleep(0.1)
        node.content_comes = False

    thread = threading.Thread(target=arrive)
    thread.start()
    token, took = ask(node, spool, 60.0)
    thread.join(30)
    assert token == "token" and 0.19 < took < 50.0 and spool.attempts == 1
    assert ask(node, spool, 60.0)[1] < 50.0 and node.calls == 4
