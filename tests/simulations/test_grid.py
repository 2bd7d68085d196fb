"""The in-process grid: Flower's contract, one message at a time, no exception text in a reply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fed_diffmic.exchange.failures import FAILURES, UNEXPECTED
from simulations.grid import InProcessGrid, run_in_process

SECRET = "DOE_JANE_1957"


def ask(grid: Grid, node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type="query")


@pytest.fixture
def calls() -> list[int]:
    return []


@pytest.fixture
def grid(calls: list[int]) -> InProcessGrid:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        calls.append(context.node_id)
        if context.node_config.get("broken"):
            raise FileNotFoundError(f"/data/{SECRET}.png")
        return Message(RecordDict(), reply_to=message)

    return InProcessGrid(app, [{}, {}, {"broken": True}], {"run-dir": "x"})


def test_a_message_runs_when_its_reply_is_pulled_and_once(grid: InProcessGrid, calls: list[int]) -> None:
    ids = list(grid.push_messages([ask(grid, 2), ask(grid, 1)]))
    assert calls == []
    (first,) = grid.pull_messages(ids)
    assert (calls, first.metadata.reply_to_message_id, first.metadata.src_node_id) == ([2], ids[0], 2)
    (second,) = grid.pull_messages(ids)
    assert (calls, second.metadata.reply_to_message_id) == ([2, 1], ids[1])
    assert list(grid.pull_messages(ids)) == []


def test_an_unknown_node_gets_no_message(grid: InProcessGrid) -> None:
    assert list(grid.get_node_ids()) == [1, 2, 3]
    assert list(grid.push_messages([ask(grid, 9)])) == []


def test_an_exception_becomes_a_code_and_our_sentence(
    grid: InProcessGrid, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (reply,) = grid.send_and_receive([ask(grid, 3)])
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (UNEXPECTED, FAILURES[UNEXPECTED])
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_send_and_receive_takes_all_and_starts_none_after_its_time(grid: InProcessGrid, calls: list[int]) -> None:
    assert len(list(grid.send_and_receive([ask(grid, 1), ask(grid, 2)]))) == 2
    calls.clear()
    assert list(grid.send_and_receive([ask(grid, 1), ask(grid, 2)], timeout=0.0)) == []
    assert calls == []


def test_a_server_app_runs_over_it_and_its_errors_come_out(tmp_path: Path) -> None:
    app, seen = ServerApp(), {}

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        seen.update({"nodes": list(grid.get_node_ids()), "config": dict(context.run_config)})
        if context.run_config.get("fail"):
            raise ValueError("as it is")

    run_in_process(app, ClientApp(), [{}, {}], {"run-dir": str(tmp_path)})
    assert seen == {"nodes": [1, 2], "config": {"run-dir": str(tmp_path)}}
    with pytest.raises(ValueError, match="as it is"):
        run_in_process(app, ClientApp(), [{}], {"fail": 1})


def test_flowers_other_grid_calls_answer(grid: InProcessGrid) -> None:
    run: Any = None
    grid.set_run(run)
    assert grid.run is None
    message = grid.create_message(RecordDict(), "query", 1, "7")
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (1, "7")
