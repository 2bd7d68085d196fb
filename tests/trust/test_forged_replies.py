"""Replies that are not a site's own answer: the coordinator takes none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import compare
from fed_diffmic.exchange.payload import Payload, Wire, decode, encode, request_name
from fed_diffmic.exchange.seal import check_request, read_reply_seal, read_request_seal, seal_reply
from fed_diffmic.release.final import load_final
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import reply_message, to_record, wire_of
from server.checkpoints import CheckpointStore
from tests import site_rules, toy
from tests.seals import (
    AMPLE,
    COORDINATOR,
    SITE_KEYS,
    facts_of,
    sealed_hooks,
    sealed_rules,
)


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


# ---- the coordinator's side --------------------------------------------------------------------
class CarriedGrid(site_rules.RuledGrid):
    """Whoever carries replies does something to them."""

    tamper: Callable[[Message, Message], Message]
    asked: Wire

    def _run(self, message: Message) -> Message:
        self.asked = wire_of(message.content)  # a real site lets go of what it decoded
        reply = super()._run(message)
        changed = self.tamper(reply, message)
        set_message_id(changed, f"reply-{message.metadata.message_id}")
        return changed


def carried(folder: Path, tamper: Callable[[Message, Message], Message] | None = None) -> Any:
    ruled = {n: sealed_rules(folder / "logs", n, folder / "sites" / n) for n in ("a", "b", "c")}
    grid, _ = site_rules.ruled_grid(folder, ruled)
    grid.__class__ = CarriedGrid
    assert isinstance(grid, CarriedGrid)
    grid.tamper = tamper or (lambda reply, _: reply)
    return grid


def federate(folder: Path, grid: Any, events: Any = None, hooks: Any = None, **settings: Any) -> Any:
    given = {
        "stages": ["guidance"],
        "sites": ["a", "b", "c"],
        "poll_s": 0.001,
        "join_s": 1.0,
        "quorum": 0.5,
        **settings,
    }
    return toy.federate(
        grid, toy.toy_spec(), CheckpointStore(folder / "run"), events or toy.Events([]),
        hooks=hooks or sealed_hooks(folder / "run", ("a", "b", "c")), **given,
    )  # fmt: skip


def reads(value: object, message: Message) -> bool:
    """Whether a message was to the node 1 (the site ``a``) and of that type."""
    return message.metadata.dst_node_id == 1 and message.metadata.message_type == value


def test_seals_change_no_bit_and_both_logs_agree(tmp_path: Path) -> None:
    final = federate(tmp_path, carried(tmp_path))
    plain_grid, _ = toy.toy_grid(tmp_path / "plain", names=("a", "b", "c"))
    plain = toy.federate(
        plain_grid, toy.toy_spec(), CheckpointStore(tmp_path / "plain" / "run"), toy.Events([]),
        stages=["guidance"], sites=["a", "b", "c"], poll_s=0.001, join_s=1.0,
    )  # fmt: skip
    assert final.digests == plain.digests and load_final(tmp_path / "run").bytes_sent == plain.bytes_sent
    here, there = read_lines(tmp_path / "logs" / "a.audit.jsonl"), read_lines(tmp_path / "run" / "audit.jsonl")
    assert compare(here, there, site="a", run="toy") == []
    lengths = []
    for facts in facts_of(here, "task"):
        asked = read_request_seal(facts["seal"], facts["seal_signature"], COORDINATOR.public_key())
        lengths.append(asked.head.length)
        assert asked.head.digest == there[asked.head.length - 1].digest
        assert there[asked.head.length - 1].facts["request"] == facts["request"]
    assert lengths == sorted(set(lengths)) and len(lengths) == 7
    replies = [facts for facts in facts_of(there, "reply") if facts["site"] in ("a", "node 1")]
    assert len(replies) == 7
    for facts in replies:
        proof = read_reply_seal(facts["seal"], facts["seal_signature"], SITE_KEYS["a"].public_key())
        assert (proof.digest, proof.request, proof.site) == (facts["digest"], facts["request"], "a")
        assert here[proof.head.length - 1].facts["digest"] == facts["digest"]


def made_up(asked: Wire) -> Wire:
    """A reply to a request that somebody read on its way, as good as one can be made."""
    request = decode(replace(asked, seal=""), AMPLE)
    quoted = {name: request.header[name] for name in ("run", "arm", "stage", "round", "site")}
    facts = {"request": request_name(request.header), "num_examples": 12, "state": "", "ledger": "", "claim": ""}
    tensors = {name: value for name, value in request.tensors.items() if not name.startswith("base/")}
    return encode(Payload("train.reply", quoted | facts, tensors, {"loss": 0.0, "steps": 1.0, "seconds": 1.0}))


def sealed_by_b(asked: Wire) -> Wire:
    """The same, sealed with another site's key and encrypted to the key that the request names."""
    seal = check_request(asked, COORDINATOR.public_key(), "a")
    name = request_name(decode(replace(asked, seal=""), AMPLE).header)
    return seal_reply(
        made_up(asked), SITE_KEYS["b"], request=name, site="a", head=seal.head, reply_key=seal.reply_key
    )  # fmt: skip


FIRST: dict[str, Any] = {}
TAMPERED: dict[str, Callable[[Wire, Wire], Wire]] = {  # of the reply, and of the request
    "without a seal": lambda _, asked: made_up(asked),
    "sealed by another site": lambda _, asked: sealed_by_b(asked),
    "another site's reply in its place": lambda _, asked: FIRST["b"],
    "an earlier reply in its place": lambda _, asked: FIRST["a"],
    "one byte changed": lambda reply, _: changed_byte(reply),
    "its seal cut off": lambda reply, _: replace(reply, seal=""),
    "its tensors gone": lambda reply, _: replace(reply, arrays={}),
}


def changed_byte(wire: Wire) -> Wire:
    array = wire.arrays["1"]
    data = bytes([array.data[0] ^ 1]) + array.data[1:]
    return replace(wire, arrays={**wire.arrays, "1": replace(array, data=data)})


@pytest.mark.parametrize("name", TAMPERED)
def test_a_reply_that_is_not_the_sites_own_is_refused_and_the_round_is_made_without_it(
    tmp_path: Path, name: str
) -> None:
    FIRST.clear()
    grid = carried(tmp_path)

    def tamper(reply: Message, message: Message) -> Message:
        if message.metadata.message_type != "train":
            return reply
        number, node = message.metadata.group_id, message.metadata.dst_node_id
        if number == "1":
            FIRST["abc"[node - 1]] = wire_of(reply.content)
            return reply
        return replace_content(message, TAMPERED[name](wire_of(reply.content), grid.asked)) if node == 1 else reply

    grid.tamper, events = tamper, toy.Events([])
    final = federate(tmp_path, grid, events)
    assert sorted(final.history[0]["sites"]) == ["a", "b", "c"]
    assert sorted(final.history[1]["sites"]) == ["b", "c"]
    code = "malformed" if name in ("its tensors gone", "one byte changed") else "seal"
    assert [(e["site"], e["code"]) for e in events.of("site_refused")] == [("a", code)]
    there = read_lines(tmp_path / "run" / "audit.jsonl")
    assert [(f["site"], f["code"]) for f in facts_of(there, "refusal")] == [("a", code)]


def replace_content(message: Message, wire: Wire) -> Message:
    return Message(to_record(wire), reply_to=message)


def test_a_failure_needs_no_seal_and_makes_a_site_missing_only(tmp_path: Path) -> None:
    """Flower's errors come of anybody: the worst that they do is that a site seems to be missing."""

    def tamper(reply: Message, message: Message) -> Message:
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 1:
            return Message(Error(code=failures.DIVERGED, reason="x"), reply_to=message)
        return reply

    final = federate(tmp_path, carried(tmp_path, tamper))
    assert sorted(final.history[0]["sites"]) == ["b", "c"]


def test_a_node_whose_reply_to_the_first_question_is_not_sealed_is_no_site(tmp_path: Path) -> None:
    def tamper(reply: Message, message: Message) -> Message:
        return reply_message(Payload("query.reply", {"site": "a"}), message) if reads("query", message) else reply

    with pytest.raises(RoundError, match="not sealed by the site"):
        federate(tmp_path, carried(tmp_path, tamper), quorum=1.0, join_s=0.3)


def test_a_reply_without_seals_is_refused_where_there_are_none(tmp_path: Path) -> None:
    """A simulation's coordinator takes no sealed reply: it could not check it."""

    def tamper(reply: Message, message: Message) -> Message:
        wire = wire_of(reply.content)
        return replace_content(message, replace(wire, seal="{}")) if reads("train", message) else reply

    grid, _ = site_rules.ruled_grid(tmp_path, {n: site_rules.rules(tmp_path / "logs", n) for n in ("a", "b", "c")})
    grid.__class__ = CarriedGrid
    grid.tamper = tamper  # type: ignore[attr-defined]
    events = toy.Events([])
    hooks = sealed_hooks(tmp_path / "run", ("a", "b", "c"), seals=None)
    final = federate(tmp_path, grid, events, hooks)
    assert sorted(final.history[0]["sites"]) == ["b", "c"]
    assert {(e["site"], e["code"]) for e in events.of("site_refused")} == {("a", "malformed")}


def test_a_resumed_run_asks_again_under_new_heads_and_is_answered(tmp_path: Path) -> None:
    """Killed at any moment: the coordinator's log has grown, so what it sends again is not old."""

    class Killed(CarriedGrid):
        left = 7

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            type(self).left -= 1
            if type(self).left == 0:
                raise KeyboardInterrupt
            return super().pull_messages(message_ids)

    whole = federate(tmp_path / "whole", carried(tmp_path / "whole"))
    for stop in (4, 7, 10):
        folder = tmp_path / str(stop)
        grid = carried(folder)
        grid.__class__, Killed.left = Killed, stop
        with pytest.raises(KeyboardInterrupt):
            federate(folder, grid)
        assert federate(folder, carried(folder)).digests == whole.digests


def test_a_seal_needs_a_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="audit log"):
        sealed_hooks(tmp_path, ("a",), audit=None)
