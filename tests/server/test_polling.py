"""How often a coordinator looks for replies: soon after it asked, seldom when sites take long."""

from types import SimpleNamespace

import pytest

from fed_diffmic.exchange.payload import Payload, pack
from fed_diffmic.exchange.screening import Expected
from server import replies
from tests import toy


class SilentGrid:
    """Notes when it was asked; nobody ever replies."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock = clock
        self.looks: list[float] = []

    def push_messages(self, messages):
        return ["1" for _ in messages]

    def pull_messages(self, ids):
        self.looks.append(self.clock.now)
        return []


@pytest.mark.parametrize(("lasts", "looks"), [(2.0, (20, 21)), (3600.0, (1800, 2100))])
def test_long_silence_is_looked_at_less_often(monkeypatch, lasts, looks):
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(replies, "time", clock)
    grid, site = SilentGrid(clock), replies.Site("a", 1)
    request = replies.Request(site, Payload("query", {"run": "r"}), Expected("query.reply", {}), pack({}))
    channel = replies.Channel(grid, toy.Events([]), poll_s=0.1)
    outcome = replies.ask(channel, [request], message_type="query", deadline=lasts, facts={})
    pauses = [after - before for before, after in zip(grid.looks, grid.looks[1:], strict=False)]
    assert looks[0] <= len(grid.looks) <= looks[1] and set(outcome.missing) == {"a"}
    assert min(pauses) >= 0.1 - 1e-9 and max(pauses) <= replies.LONGEST_POLL_S + 1e-9
    assert all(pause <= max(0.1, 0.02 * at) + 1e-9 for pause, at in zip(pauses, grid.looks, strict=False))
