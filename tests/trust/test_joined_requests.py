"""Two requests of one message at a site that pins the coordinator's key: each is its own, nothing old comes again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client import site as client_site
from client.app import app
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.payload import Payload, PayloadError, Wire, encode
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import failure_of
from fed_diffmic.transport.together import JUDGED, joined_message, joined_reply, parts_of
from tests import toy
from tests.client.test_app import context, task
from tests.seals import Asker, sealed_rules


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def site(tmp_path: Path) -> Any:
    source = toy.ToySource({"a": toy.toy_site("a", 1)})
    client_site.register_source(source, rules=sealed_rules(tmp_path / "log", "a", tmp_path / "a"))
    yield context(tmp_path)
    client_site.register_source(source)


def deliver(evaluate: Wire, train: Wire, where: Context) -> dict[str, int]:
    """Codes of what failed; empty: both were answered."""
    wires = {"evaluate": evaluate, "train": train}
    return codes(joined_message(wires, node=1, message_type=JUDGED, ttl=60.0, group="1"), where)


def codes(message: Message, where: Context) -> dict[str, int]:
    set_message_id(message, "1")
    parts = parts_of(app(message=message, context=where))
    failed = {kind: failure_of(part) for kind, part in parts.items()}
    return {kind: found[0] for kind, found in failed.items() if found is not None}


def both(index: int = 1) -> tuple[Payload, Payload]:
    """Metrics of a round's weights, and the next round's training."""
    spec = toy.toy_spec(rounds=4)
    return task("evaluate", spec, round=index), task("train", spec, round=index + 1)


def test_both_are_answered_and_a_killed_workers_message_is_answered_again(tmp_path: Path, site: Context) -> None:
    asker = Asker()
    first = tuple(asker.sealed(request) for request in both())
    for _ in range(3):  # the site's SuperNode gives a message to the next worker where one ends over it
        assert deliver(*first, site) == {}
    second = tuple(asker.sealed(request) for request in both(2))
    assert deliver(*second, site) == {}
    assert deliver(*first, site) == {"evaluate": failures.STALE, "train": failures.STALE}
    assert deliver(first[0], second[1], site) == {"evaluate": failures.STALE, "train": failures.STALE}
    kept = read_lines(tmp_path / "log" / "a.audit.jsonl")
    tasks = [(line.facts["task"], line.facts["round"]) for line in kept if line.kind == "task"]
    assert tasks == [("evaluate", 1), ("train", 2)] * 3 + [("evaluate", 2), ("train", 3)]


def test_an_old_request_does_not_ride_on_a_new_one(site: Context) -> None:
    asker = Asker()
    old, train = (asker.sealed(request) for request in both())
    assert deliver(old, train, site) == {}
    fresh = asker.sealed(both(2)[1])
    assert deliver(old, fresh, site) == {"evaluate": failures.STALE}


def test_an_old_request_to_train_that_was_never_taken_does_not_ride_behind_a_new_one(
    tmp_path: Path, site: Context
) -> None:
    """Whoever carries messages kept one back until the coordinator had gone on, and puts it beside a later one."""
    asker = Asker()
    kept_back, fresh = asker.sealed(both()[1]), asker.sealed(both()[0])
    for _ in range(2):
        assert deliver(fresh, kept_back, site) == {"train": failures.STALE}
    kept = read_lines(tmp_path / "log" / "a.audit.jsonl")
    assert [line.facts["task"] for line in kept if line.kind == "task"] == ["evaluate"] * 2


@pytest.mark.parametrize("part", [0, 1])
def test_one_that_is_not_the_coordinators_own_is_refused_and_the_other_answered(site: Context, part: int) -> None:
    wires = [Asker(length=part).sealed(request) for part, request in enumerate(both())]
    wires[part] = replace(encode(both()[part]), seal="{}")
    assert deliver(wires[0], wires[1], site) == {("evaluate", "train")[part]: failures.UNSEALED}


@pytest.mark.parametrize(
    "records",
    [
        {"payload": ConfigRecord({"body": "x"})},
        {"train.payload": ConfigRecord({}), "mask.payload": ConfigRecord({})},
        {"train.failure": ConfigRecord({"code": 2004}), "train.payload": ConfigRecord({})},
        {"train.failure": ConfigRecord({"code": "2004"})},
        {"evaluate.failure": ConfigRecord({"code": 2004}), "train.failure": ConfigRecord({"code": 2004})},
        {},
    ],
)
def test_what_is_no_message_of_two_is_refused_and_ends_nothing(site: Context, records: Any) -> None:
    message = joined_message({}, node=1, message_type=JUDGED, ttl=60.0, group="1")
    message.content = RecordDict(records)
    set_message_id(message, "1")
    reply = app(message=message, context=site)
    try:
        found = {failure_of(part) for part in parts_of(reply).values()}
    except PayloadError:
        found = {failure_of(reply)}
    assert None not in found


def test_a_reply_of_failures_is_two_failures(site: Context) -> None:
    asked = joined_message({}, node=1, message_type=JUDGED, ttl=60.0, group="1")
    parts = parts_of(Message(failure_error(2004), reply_to=asked))
    assert [failure_of(part) for part in parts.values()] == [(2004, failures.FAILURES[2004])] * 2
    joined = joined_reply({kind: Message(failure_error(2001), reply_to=asked) for kind in ("evaluate", "train")}, asked)
    assert not joined.has_error() and {part.error.code for part in parts_of(joined).values()} == {2001}


def failure_error(code: int) -> Any:
    from flwr.app import Error

    return Error(code=code, reason="whatever a peer may say")
