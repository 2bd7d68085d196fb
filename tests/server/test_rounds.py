"""Rounds over real messages with sites that fail: quorum, refusals, deadlines, duplicates, names that stay there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client import tasks
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.payload import Payload
from server.checkpoints import CheckpointStore
from simulations.grid import InProcessGrid
from tests import toy


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_a_missed_quorum_names_the_site_and_the_run_can_go_on(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path / "whole")
    whole = toy.short_run(tmp_path / "whole", grid)
    grid, source = toy.toy_grid(tmp_path)
    store, seen = CheckpointStore(tmp_path), []

    class Failing(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            seen.extend(m.metadata.message_type for m in messages)
            if seen.count("train") == 4:
                source.fail["b"] = OSError("/data/DOE_JANE_1957.png")
            return super().push_messages(messages)

    grid.__class__ = Failing
    with pytest.raises(RoundError, match=r"round 2: 1 of 2 sites replied well.*b: the site's machine") as caught:
        toy.short_run(tmp_path, grid)
    assert "DOE" not in str(caught.value)
    assert store.load().progress.round == 1  # type: ignore[union-attr]
    source.fail.clear()
    events = toy.Events([])
    grid.__class__ = InProcessGrid
    assert toy.short_run(tmp_path, grid, events=events).digests == whole.digests
    assert events.log[0] == {"kind": "federation_resumed", "arm": "federated", "stage": "guidance", "round": 1}


def test_with_half_the_quorum_the_run_ends_without_the_failing_site(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    spec, events = toy.toy_spec(), toy.Events([])

    class Failing(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages[0].metadata.message_type == "train":
                source.fail["b"] = ValueError("DOE_JANE")
            return super().push_messages(messages)

    grid.__class__ = Failing
    final = toy.short_run(tmp_path, grid, spec, events, sites=["a", "b", "c"], quorum=0.5)
    assert sorted(final.history[-1]["sites"]) == ["a", "c"]
    assert "b" in final.history[-1]["missing"]
    assert {e["site"] for e in events.of("site_failed")} == {"b"}


MUTATIONS: dict[str, tuple[str, Callable[[Payload], Payload]]] = {
    "not_finite": (
        "not_finite",
        lambda p: replace(p, tensors={k: v * np.nan for k, v in p.tensors.items()} | _counter(p)),
    ),
    "shape": (
        "shape",
        lambda p: replace(p, tensors={**p.tensors, "head.bias": np.zeros(4, np.float32)[1:].reshape(3, 1)}),
    ),
    "larger": ("malformed", lambda p: replace(p, tensors={**p.tensors, "head.bias": np.zeros(10_000, np.float32)})),
    "names": ("malformed", lambda p: replace(p, tensors={**p.tensors, "more": np.zeros(1, np.float32)})),
    "weight": ("weight", lambda p: replace(p, header={**p.header, "num_examples": -5})),
    "replay": ("replay", lambda p: replace(p, header={**p.header, "round": 7})),
    "other site": ("site", lambda p: replace(p, header={**p.header, "site": "b"})),
    "kind": ("kind", lambda p: replace(p, kind="evaluate.reply")),
    "need base twice": ("kind", lambda p: Payload("need_base")),
}


def _counter(payload: Payload) -> dict[str, np.ndarray]:
    return {k: v for k, v in payload.tensors.items() if v.dtype.kind == "i"}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_reply_is_refused_logged_and_kept_from_the_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, mutate = MUTATIONS[name]
    honest = tasks.train

    def train(site: Any, spec: Any, request: Payload) -> Payload:
        reply = honest(site, spec, request)
        return mutate(reply) if site.name == "a" else reply

    from client import app as app_module

    monkeypatch.setitem(
        app_module.app._registered_funcs,
        "train.default",
        lambda message, context: app_module.answer(message, context, "train", train),
    )
    grid, _ = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    events = toy.Events([])
    final = toy.short_run(tmp_path, grid, toy.toy_spec(), events, sites=["a", "b", "c"], quorum=0.6)
    refused = events.of("site_refused")
    assert {(e["site"], e["code"]) for e in refused} == {("a", code)}
    assert all(sorted(row["sites"]) == ["b", "c"] for row in final.history)


def test_two_nodes_that_claim_one_name_are_both_refused(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    source.sites["c"] = replace(source.sites["c"], name="b")
    events = toy.Events([])
    with pytest.raises(RoundError, match="more than one node says"):
        toy.short_run(tmp_path, grid, events=events, sites=["a", "b"], join_s=0.2)
    assert {(e["site"], e["code"]) for e in events.of("site_refused")} == {("b", "duplicate")}


def test_a_site_with_other_classes_or_another_name_cannot_join(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path)
    source.sites["b"] = replace(source.sites["b"], classes=("x", "y", "z"))
    with pytest.raises(RoundError, match="classes or task are not those of the run"):
        toy.short_run(tmp_path, grid, join_s=0.2)
    source.sites["b"] = replace(source.sites["a"], name="stranger")
    grid, _ = toy.toy_grid(tmp_path)[0], None
    from client.site import register_source

    register_source(source)
    with pytest.raises(RoundError, match="b: it is not connected"):
        toy.short_run(tmp_path, grid, join_s=0.2)


class Silent(InProcessGrid):
    """A site that never answers once training begins."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = [i for i in message_ids if not self._mute(i)]
        return super().pull_messages(ids)

    def _mute(self, message_id: str) -> bool:
        message = self._waiting.get(message_id)
        return message is not None and message.metadata.message_type == "train" and message.metadata.dst_node_id == 2


def test_a_silent_site_ends_the_round_at_the_deadline(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    grid.__class__ = Silent
    started = time.monotonic()
    with pytest.raises(RoundError, match="b: it did not reply before the deadline"):
        toy.short_run(tmp_path, grid, deadline_s=2.0)
    assert time.monotonic() - started < 15.0


def test_waiting_for_sites_is_bounded(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RoundError, match="a: it is not connected"):
        toy.short_run(tmp_path, InProcessGrid(toy.app, []), join_s=0.3)
    with pytest.raises(RoundError, match="no site is connected"):
        toy.short_run(tmp_path, InProcessGrid(toy.app, []), sites=None, join_s=0.3)
    assert time.monotonic() - started < 15.0


class Noisy(InProcessGrid):
    """Delivers every reply twice: the second answers a request that is closed."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        return [*replies, *replies]


def test_duplicates_and_answers_to_nothing_change_nothing(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path / "whole")
    whole = toy.short_run(tmp_path / "whole", grid)
    grid, _ = toy.toy_grid(tmp_path)
    grid.__class__ = Noisy
    events = toy.Events([])
    assert toy.short_run(tmp_path, grid, events=events).digests == whole.digests
    assert {e["code"] for e in events.of("site_refused")} == {"duplicate"}


def test_the_order_of_nodes_does_not_matter(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path / "ab", names=("a", "b"))
    one = toy.short_run(tmp_path / "ab", grid)
    grid, source = toy.toy_grid(tmp_path / "ba", names=("b", "a"))
    source.sites = {"a": toy.toy_site("a", 1), "b": toy.toy_site("b", 2)}
    assert toy.short_run(tmp_path / "ba", grid).digests == one.digests


# ---- names ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("when", ["query", "train", "evaluate"])
def test_a_name_in_an_exception_stays_at_the_site(
    tmp_path: Path, when: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "DOE_JANE_1957-03-02"
    grid, source = toy.toy_grid(tmp_path / "hospital")
    replies: list[Message] = []

    class Failing(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages[0].metadata.message_type == when:
                source.fail["b"] = FileNotFoundError(2, "No such file", f"/data/{secret}.png")
            return super().push_messages(messages)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            got = list(super().pull_messages(message_ids))
            replies.extend(got)
            return got

    grid.__class__ = Failing
    events = toy.Events([])
    with pytest.raises(RoundError) as caught:
        toy.short_run(tmp_path / "coordinator", grid, events=events, join_s=0.2)
    written = "".join(p.read_text("latin-1") for p in (tmp_path / "coordinator").rglob("*") if p.is_file())
    crossed = " ".join(str(m) for m in replies)
    printed = "".join(capfd.readouterr())
    for place in (str(caught.value), json.dumps(events.log), written, crossed, printed, caplog.text):
        assert secret not in place
    log = tmp_path / "hospital" / "sites" / "b" / "site.log"
    assert secret in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
