"""A site that Flower lost for a while is asked again, and its update is the one it had: nothing changes."""

import pytest
from flwr.app import Error, Message

from client.app import app
from fed_diffmic.errors import RoundError
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from simulations.grid import InProcessGrid
from tests import toy


class LosingGrid(InProcessGrid):
    """Loses replies of one node that it is told to lose, as Flower does: in its own words, with its own code."""

    node, lost, code = 2, 0, 5

    def _run(self, message: Message) -> Message:
        reply = super()._run(message)
        if message.metadata.dst_node_id == self.node and self.lost > 0 and message.metadata.message_type == "train":
            self.lost -= 1
            return Message(Error(code=self.code, reason="Node Unavailable"), reply_to=message)
        return reply


def federate(folder, lost=0, code=5, **more):
    toy_grid, _ = toy.toy_grid(folder)
    grid = LosingGrid(app, [context.node_config for context in toy_grid._contexts.values()])
    grid.lost, grid.code = lost, code
    events = toy.Events([])
    store = CheckpointStore(folder / "run")
    final = toy.federate(grid, toy.toy_spec(), store, events, stages=["guidance"], **more)
    return final, events


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("server.replies.LOST_S", 0.05)


@pytest.mark.parametrize("code", [3, 4, 5, 8])
def test_a_site_that_comes_back_is_counted(tmp_path, code):
    whole, _ = federate(tmp_path / "whole")
    final, events = federate(tmp_path / "lost", lost=2, code=code)
    assert final.digests == whole.digests and final.history[0]["missing"] == {}
    assert [(e["site"], e["code"]) for e in events.of("site_waits")] == [("b", code)] * 2


def test_a_site_that_does_not_come_back_ends_the_run_at_the_deadline(tmp_path):
    with pytest.raises(RoundError, match="b: Flower reports that the site's process failed or is not there"):
        federate(tmp_path, lost=10**6, deadline_s=2.0)


def test_a_quorum_does_not_wait_for_it(tmp_path):
    final, _ = federate(tmp_path, lost=10**6, quorum=0.5, deadline_s=60.0)
    assert set(final.history[0]["sites"]) == {"a"} and final.history[0]["seconds"] < 30


def test_what_the_apps_own_failure_says_is_final(tmp_path):
    with pytest.raises(RoundError):
        federate(tmp_path, lost=1, code=2)


def test_a_site_that_was_revoked_is_not_called_lost(tmp_path):
    """Flower knows only that the node is not there; the roster knows why, and it is not waited for."""
    toy_grid, _ = toy.toy_grid(tmp_path)
    bound = {1: "a", 2: "b"}

    class Revoking(LosingGrid):
        def _run(self, message):
            if message.metadata.message_type == "train":
                bound.pop(2, None)
            return super()._run(message)

    grid = Revoking(app, [context.node_config for context in toy_grid._contexts.values()])
    grid.lost = 10**6
    hooks, events = Hooks(lambda: bound), toy.Events([])
    store = CheckpointStore(tmp_path / "run")
    spec = toy.toy_spec()
    toy.federate(grid, spec, store, events, stages=["guidance"], quorum=0.5, sites=["a", "b"], hooks=hooks)
    assert events.of("site_waits") == []
    refused = events.of("site_refused")[0]
    assert (refused["site"], refused["code"], refused["stage"], refused["round"]) == ("b", "roster", "guidance", 1)
