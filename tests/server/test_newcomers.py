"""Sites that are asked who they are: one that says nothing holds up nobody, and is heard whenever it does."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fed_diffmic.errors import RoundError
from server import presence
from server.hooks import Hooks
from server.labels import agreed_labels
from server.presence import SILENT, Presence
from server.terms import RunTerms
from simulations.grid import InProcessGrid
from tests import toy

NAMES = {1: "a", 2: "b", 3: "c"}


class Quiet(InProcessGrid):
    """Some nodes are there, and some of those say nothing."""

    there, silent = {1, 2, 3}, {3}

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.there)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = {name: self._waiting[name].metadata.dst_node_id for name in message_ids if name in self._waiting}
        return super().pull_messages([name for name, node in asked.items() if node not in self.silent])


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "NEW_S", 0.1)
    monkeypatch.setattr(presence, "LOOK_S", 0.05)


def sites(folder: Path, quorum: float = 0.6, join_s: float = 0.3, **hooks: Any) -> tuple[Quiet, Presence, toy.Events]:
    grid, _ = toy.toy_grid(folder, names=tuple(NAMES.values()))
    grid.__class__, events = Quiet, toy.Events([])
    terms = RunTerms(["guidance"], ["a", "b", "c"], quorum, join_s=join_s, poll_s=0.001)
    return grid, Presence(grid, toy.toy_spec(), events, terms, hooks=Hooks(lambda: dict(NAMES), **hooks)), events


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


def test_sites_that_come_after_a_silent_one_are_found(tmp_path: Path) -> None:
    grid, found, events = sites(tmp_path, join_s=1.0)
    grid.there = {3}
    began = time.monotonic()
    come = found._look

    def later(*args: Any) -> Any:
        grid.there = {1, 2, 3} if time.monotonic() - began > 0.2 else {3}
        return come(*args)

    found._look = later
    found.find(soon())
    assert sorted(found.members) == ["a", "b"]
    assert [(e["site"], e["reason"]) for e in events.of("site_failed")] == [("c", SILENT)]


def test_who_was_silent_is_named_where_the_quorum_is_missed(tmp_path: Path) -> None:
    _, found, _ = sites(tmp_path, quorum=1.0)
    with pytest.raises(RoundError, match=rf"2 of 3 sites replied well, 3 needed \(c: {SILENT}\)"):
        found.find(soon())


def test_a_round_waits_a_while_for_a_silent_site_and_asks_the_others(tmp_path: Path) -> None:
    grid, found, events = sites(tmp_path)
    grid.there = {1, 2}
    found.find(soon())
    grid.there = {1, 2, 3}
    for _ in range(3):
        began = time.monotonic()
        found.refresh(soon(8.0))
        assert time.monotonic() - began < 7.0
    assert [m.metadata.dst_node_id for m in grid._waiting.values()] == [3]  # and it was asked once
    assert len(events.of("site_failed")) == 1 and sorted(found.members) == ["a", "b"]
    grid.silent = set()
    found.refresh(soon())
    assert sorted(found.members) == ["a", "b", "c"] and not found._questions


def test_a_round_that_needs_a_site_waits_for_it_and_for_no_other(tmp_path: Path) -> None:
    grid, found, _ = sites(tmp_path)
    grid.there, grid.silent, began = {1, 2, 3}, {2, 3}, time.monotonic()
    look = found._look

    def later(*args: Any) -> Any:
        grid.silent = {3} if time.monotonic() - began > 0.5 else {2, 3}
        return look(*args)

    found._look = later
    found.refresh(soon(8.0))
    assert sorted(found.members) == ["a", "b"] and time.monotonic() - began < 7.0
    began, found.members = time.monotonic(), {}
    found.refresh(soon(0.3))
    assert 0.3 <= time.monotonic() - began < 5.0  # nobody is there: as long as the round may


def test_a_silent_site_that_the_roster_drops_is_forgotten(tmp_path: Path) -> None:
    bound = dict(NAMES)
    grid, found, _ = sites(tmp_path)
    found.hooks = Hooks(lambda: bound)
    found.find(soon())
    assert [r.site.name for r in found._questions.values()] == ["c"]
    del bound[3]
    grid.silent = set()
    found.refresh(soon())
    assert not found._questions and sorted(found.members) == ["a", "b"]


def test_the_model_is_handed_to_those_who_are_there(tmp_path: Path) -> None:
    _, found, _ = sites(tmp_path)
    asked: list[str] = []

    def request(site: Any, _: Any) -> Any:
        asked.append(site.name)
        return found._question(site, site.name)

    began = time.monotonic()
    found.hand_over(request, "query", soon(8.0), {"a", "b", "c"})
    assert asked == ["a", "b"] and time.monotonic() - began < 7.0


def test_only_sites_of_the_run_are_asked_for_their_classes(tmp_path: Path) -> None:
    """Another site of the roster is told nothing of the run, and its classes are not the run's."""
    grid, source = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    source.sites["c"] = toy.replace(source.sites["c"], classes=("x", "y", "z"))
    seen: list[int] = []
    push = grid.push_messages

    def pushed(messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        seen.extend(m.metadata.dst_node_id for m in messages)
        return push(messages)

    grid.push_messages = pushed  # type: ignore[method-assign]
    asked = {"run": "x", "nodes": 2, "deadline": 1e12, "poll_s": 0.001}
    bound = {1: "a", 2: "b", 3: "c"}
    agreed = agreed_labels(grid, toy.Events([]), hooks=Hooks(lambda: bound), sites=["a", "b"], **asked)
    assert agreed == (toy.CLASSES, "multiclass") and seen == [1, 2]
    del bound[1]
    agreed_labels(grid, toy.Events([]), hooks=Hooks(lambda: bound), sites=["b"], **{**asked, "nodes": 1})
    assert seen == [1, 2, 2]
