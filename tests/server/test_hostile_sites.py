"""Hostile sites: whatever they send is refused, logged with a code, and the round is made by the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message

from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.audit import AuditLog, read_lines, verify
from fed_diffmic.exchange.payload import Limits, Payload, encode
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import from_record, reply_message, to_record
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from simulations.grid import InProcessGrid
from tests import toy

KEY = ec.generate_private_key(ec.SECP256R1())
AMPLE = Limits(1 << 22)
Tamper = Callable[[Payload, Message], Message | Payload]


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


class Hostile(InProcessGrid):
    """The first site's good replies to requests of one kind are changed on their way out."""

    tamper: Tamper
    kind = "train"

    def _run(self, message: Message) -> Message:
        reply = super()._run(message)
        if message.metadata.dst_node_id != 1 or message.metadata.message_type != self.kind or reply.has_error():
            return reply
        changed = self.tamper(from_record(reply.content, AMPLE), reply)
        if isinstance(changed, Payload):
            changed = reply_message(changed, message)
            set_message_id(changed, f"changed-{message.metadata.message_id}")
        return changed


def federate(folder: Path, tamper: Tamper | None, kind: str = "train", **settings: Any) -> tuple[Any, toy.Events, Path]:
    names = ("a", "b", "c")
    grid, _ = toy.toy_grid(folder, names=names)
    if tamper is not None:
        grid.__class__ = Hostile
        assert isinstance(grid, Hostile)
        grid.tamper, grid.kind = tamper, kind
    folder.mkdir(parents=True, exist_ok=True)
    log, events = folder / "audit.jsonl", toy.Events([])
    more = settings.pop("hooks", {})
    hooks = Hooks(audit=AuditLog(log, KEY, owner="coordinator"), **{"max_update_norm": 1e3, **more})
    given = {"stages": ["guidance"], "sites": names, "quorum": 0.6, "poll_s": 0.001, "join_s": 60, **settings}
    spec = toy.toy_spec(rounds=1)
    final = toy.federate(grid, spec, CheckpointStore(folder / "run"), events, hooks=hooks, **given)
    return final, events, log


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    return lambda p, _: replace(p, tensors={**p.tensors, name: change(p.tensors[name])})


def header(**changes: Any) -> Tamper:
    return lambda p, _: replace(p, header={**p.header, **changes})


def poke(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return change


def wrong_digest(payload: Payload, reply: Message) -> Message:
    wire = encode(payload)
    arrays = {**wire.arrays, "head.bias": replace(wire.arrays["head.bias"], data=b"\0" * 12)}
    reply.content = to_record(replace(wire, arrays=arrays))
    return reply


def numpy_file(payload: Payload, reply: Message) -> Message:
    arrays = {name: Array(value) for name, value in payload.tensors.items()}
    reply.content["tensors"] = ArrayRecord(arrays)
    return reply


SENT: dict[str, tuple[str, Tamper]] = {
    "one NaN": ("not_finite", tensor("head.bias", poke(math.nan))),
    "one infinity": ("not_finite", tensor("norm.running_var", poke(math.inf))),
    "another shape": ("shape", tensor("head.weight", lambda v: v.T)),
    "another type": ("malformed", tensor("head.weight", lambda v: v.astype(np.float64))),
    "another type as large": ("dtype", tensor("head.bias", lambda v: v.view(np.int32))),
    "a huge norm": ("norm", tensor("head.weight", lambda v: v * np.float32(1e6))),
    "a norm beyond float32": ("norm", tensor("head.weight", lambda v: np.full_like(v, 3e38))),
    "negative weight": ("weight", header(num_examples=-12)),
    "no weight": ("weight", header(num_examples=0)),
    "more weight than it said": ("weight", header(num_examples=13)),
    "a fractional weight": ("weight", header(num_examples=0.5)),
    "weight as a truth": ("weight", header(num_examples=True)),
    "someone else's name": ("site", header(site="b")),
    "another round": ("replay", header(round=2)),
    "another request": ("replay", header(request="0" * 64)),
    "another run": ("replay", header(run="other")),
    "a field more": ("header", header(note="DOE_JANE_1957")),
    "a chain that is none": ("header", header(audit={"length": -1, "digest": "0" * 64})),
    "a digest for another": ("malformed", wrong_digest),
    "numpy's own format": ("malformed", numpy_file),
    "a tensor less": (
        "names",
        lambda p, _: replace(p, tensors={k: v for k, v in p.tensors.items() if "bias" not in k}),
    ),
    "a figure nobody asked for": ("metrics", lambda p, _: replace(p, metrics={**p.metrics, "patients": 3.0})),
}


@pytest.fixture(scope="module")
def without_a(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The weights that b and c alone make."""
    with pytest.MonkeyPatch.context() as patch:
        toy.install_toy_networks(patch.setattr)
        patch.setattr("os.fsync", lambda _: None)
        final, _, _ = federate(tmp_path_factory.mktemp("honest"), header(kind="nothing that is asked for"))
        return final.digests


@pytest.mark.parametrize("name", SENT)
def test_what_a_hostile_site_sends_is_refused_logged_and_has_no_part(
    tmp_path: Path, without_a: Mapping[str, str], name: str
) -> None:
    code, tamper = SENT[name]
    final, events, log = federate(tmp_path, tamper)
    assert {(e["site"], e["code"]) for e in events.of("site_refused")} == {("a", code)}
    assert final.digests == without_a
    assert verify(log, KEY.public_key()) == []
    lines = read_lines(log)
    assert [n.facts["code"] for n in lines if n.kind == "refusal"] == [code]
    assert "DOE_JANE" not in log.read_text()  # base64 of a signature may hold any three letters
    (aggregate,) = (n for n in lines if n.kind == "aggregate")
    assert set(aggregate.facts["payloads"]) == {"b", "c"}


def test_a_reply_kept_from_an_earlier_round_is_a_replay(tmp_path: Path) -> None:
    kept: list[Payload] = []

    def replay(payload: Payload, _: Message) -> Payload:
        kept.append(payload)
        return kept[0]

    names = ("a", "b", "c")
    grid, _ = toy.toy_grid(tmp_path, names=names)
    grid.__class__ = Hostile
    assert isinstance(grid, Hostile)
    grid.tamper, events = replay, toy.Events([])
    final = toy.federate(
        grid, toy.toy_spec(rounds=2), CheckpointStore(tmp_path / "run"), events,
        stages=["guidance"], sites=names, quorum=0.6, poll_s=0.001,
    )  # fmt: skip
    assert [(e["site"], e["code"], e["round"]) for e in events.of("site_refused")] == [("a", "replay", 2)]
    assert [sorted(row["sites"]) for row in final.history] == [["a", "b", "c"], ["b", "c"]]


def test_metrics_out_of_range_are_refused(tmp_path: Path) -> None:
    for figure in ({"accuracy": 1.5}, {"num_examples": 7.0}, {"loss": -1.0}):
        _, events, _ = federate(
            tmp_path / str(figure), lambda p, _, f=figure: replace(p, metrics={**p.metrics, **f}), kind="evaluate"
        )
        assert {(e["site"], e["code"]) for e in events.of("site_refused")} == {("a", "metrics")}


def bound(names: Mapping[int, str]) -> dict[str, Any]:
    return {"names_of_nodes": lambda: names}


def test_a_name_belongs_to_a_key(tmp_path: Path) -> None:
    """Node 1's key is b's in the roster, and it says that it is a; node 2 says b with the key of a."""
    with pytest.raises(RoundError, match="1 of 3 sites"):
        federate(tmp_path, None, quorum=1.0, join_s=0.5, hooks=bound({1: "b", 2: "a", 3: "c"}))
    refused = [n for n in read_lines(tmp_path / "audit.jsonl") if n.kind == "refusal"]
    assert {(n.facts["site"], n.facts["code"]) for n in refused} == {("a", "name"), ("b", "name")}


def test_someone_elses_name_does_not_push_the_owner_out(tmp_path: Path) -> None:
    def claim(payload: Payload, _: Message) -> Payload:
        return replace(payload, header={**payload.header, "site": "b"})

    final, events, _ = federate(tmp_path, claim, kind="query", join_s=4, hooks=bound({1: "a", 2: "b", 3: "c"}))
    assert sorted(final.history[0]["sites"]) == ["b", "c"]
    assert {(e["site"], e["code"]) for e in events.of("site_refused")} == {("a", "name")}


def test_a_node_that_the_roster_does_not_name_is_not_even_asked(tmp_path: Path) -> None:
    asked: list[int] = []

    class Watched(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            asked.extend(m.metadata.dst_node_id for m in messages)
            return super().push_messages(messages)

    grid, _ = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    grid.__class__ = Watched
    toy.federate(
        grid, toy.toy_spec(rounds=1), CheckpointStore(tmp_path / "run"), toy.Events([]),
        stages=["guidance"], sites=["b", "c"], poll_s=0.001, hooks=Hooks(**bound({2: "b", 3: "c"})),
    )  # fmt: skip
    assert set(asked) == {2, 3}


def test_a_site_removed_from_the_roster_is_dropped_in_the_middle_of_a_run(tmp_path: Path) -> None:
    roster = {1: "a", 2: "b", 3: "c"}

    def removed(payload: Payload, _: Message) -> Payload:
        roster.pop(1, None)
        return payload

    final, events, log = federate(tmp_path, removed, hooks=bound(roster))
    assert {(e["site"], e["code"]) for e in events.of("site_refused")} == {("a", "roster")}
    assert sorted(final.history[0]["sites"]) == ["a", "b", "c"]  # it was removed after it had answered
    assert sorted(final.history[0]["val"]) == ["b", "c"]
    asked = [n.facts["task"] for n in read_lines(log) if n.kind == "request" and n.facts["site"] == "a"]
    assert asked == ["query", "train"]
