"""Who only carries messages, or has a key of another site's, can neither ask a site nor answer for one.

Every case is refused before it is an answer in the site's files, a line that stands for a served request, or a reply
that the coordinator counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from client import site as client_site
from client.app import app
from client.requests import FIELDS
from client.seals import REPEATS, SAY_AGAIN_S
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import Head, Line, read_lines, verify
from fed_diffmic.exchange.audit_compare import compare
from fed_diffmic.exchange.payload import Payload, Wire, decode, encode, request_name
from fed_diffmic.exchange.seal import check_request, read_reply_seal, read_request_seal, seal_reply
from fed_diffmic.files import read_json
from fed_diffmic.release.final import load_final
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import failure_of, reply_message, task_message, to_record, wire_of
from server.checkpoints import CheckpointStore
from tests import site_rules, toy
from tests.client.test_app import context, task
from tests.seals import (
    AMPLE,
    COORDINATOR,
    OTHER,
    SITE_KEYS,
    TYPES,
    Asker,
    coordinator_seals,
    deliver,
    facts_of,
    key_of,
    sealed_hooks,
    sealed_rules,
)


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def site(tmp_path: Path) -> Any:
    """The site ``a`` with the coordinator's key pinned; returns its context."""
    source = toy.ToySource({"a": toy.toy_site("a", 1)})
    client_site.register_source(source, rules=sealed_rules(tmp_path / "log", "a", tmp_path / "a"))
    yield context(tmp_path)
    client_site.register_source(source)


def lines(tmp_path: Path) -> list[Line]:
    path = tmp_path / "log" / "a.audit.jsonl"
    assert verify(path, SITE_KEYS["a"].public_key()) == []
    return read_lines(path)


def left_nothing(tmp_path: Path) -> bool:
    """Whether nothing of a request reached a file of the site but the line of its refusal."""
    kinds = {line.kind for line in lines(tmp_path)}
    return kinds <= {"opened", "refusal"} and not [p for p in (tmp_path / "a").rglob("*.*") if p.name != "site.log"]


def query() -> Payload:
    spec = toy.toy_spec()
    return Payload("query", {"spec": spec.to_json(), "run": spec.run_id, "arm": spec.arm, "ledger": ""})


def forged_by_a_site(request: Payload) -> Wire:
    """A neighbour's own key over everything, in the coordinator's name."""
    return Asker(replace(coordinator_seals(), signer=SITE_KEYS["b"])).sealed(request)


def with_a_borrowed_seal(request: Payload) -> Wire:
    """The coordinator's seal of something else that it asked of this site."""
    other = Asker().sealed(replace(request, header={**request.header, "run": "another"}))
    return replace(encode(request), seal=other.seal)


FORGERIES: dict[str, tuple[Callable[[Payload], Wire], int]] = {
    "without a seal": (encode, failures.UNSEALED),
    "with something that is no seal": (lambda r: replace(encode(r), seal="{}"), failures.UNSEALED),
    "sealed by another site": (forged_by_a_site, failures.FORGED),
    "with the seal of another request": (with_a_borrowed_seal, failures.FORGED),
    "sealed for another site": (lambda r: Asker().sealed(r, to="b"), failures.FOREIGN),
}
KINDS: dict[str, Callable[[], Payload]] = {
    "train": lambda: task("train"),
    "evaluate": lambda: task("evaluate"),
    "conform": lambda: task("conform"),
    "assess": lambda: task("assess"),
    "query": query,
    "labels": lambda: Payload("labels", {"run": "toy"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORGERIES)
def test_a_request_that_is_not_the_coordinators_own_is_refused_and_leaves_nothing(
    tmp_path: Path, site: Context, name: str, kind: str
) -> None:
    forge, code = FORGERIES[name]
    assert failure_of(deliver(forge(KINDS[kind]()), kind, site)) == (code, failures.FAILURES[code])
    assert left_nothing(tmp_path)
    assert facts_of(lines(tmp_path), "refusal") == [
        {"task": kind, "code": code, "reason": failures.FAILURES[code], "count": 1}
    ]


def test_the_honest_round_goes_on_after_an_injected_one(tmp_path: Path, site: Context) -> None:
    """What ended a run: a neighbour's request for round 2 made the site refuse the coordinator's own round 1."""
    asker, honest = Asker(), task("train")
    for forge, code in FORGERIES.values():
        injected = forge(task("train", toy.toy_spec(lr=0.5), round=2))
        assert failure_of(deliver(injected, "train", site)) == (code, failures.FAILURES[code])
    reply = asker.opened(deliver(asker.sealed(honest), "train", site), honest)
    assert reply.kind == "train.reply" and reply.header["round"] == 1


def test_a_site_answers_the_coordinator_and_only_it_can_read_that(tmp_path: Path, site: Context) -> None:
    asker = Asker()
    for kind, build in KINDS.items():
        request = build() if kind != "evaluate" else task("evaluate", attach=False)
        reply = deliver(asker.sealed(request), kind, site)
        wire = wire_of(reply.content)
        with pytest.raises(Exception, match="sealed"):
            decode(wire, AMPLE)
        for seals in (coordinator_seals(), replace(asker.seals, key_of=lambda _: key_of("b"))):
            with pytest.raises(Exception, match="seal"):
                seals.open(
                    replace(wire, arrays=dict(wire.arrays)),
                    request=request_name(request.header),
                    site="a",
                    limits=AMPLE,
                )
        assert asker.opened(reply, request).kind == f"{kind}.reply"


def test_both_logs_hold_the_others_seal(tmp_path: Path, site: Context) -> None:
    asker, request = Asker(), task("train")
    wire = asker.sealed(request)
    reply = deliver(wire, "train", site)
    (line,) = facts_of(lines(tmp_path), "task")
    asked = read_request_seal(line["seal"], line["seal_signature"], COORDINATOR.public_key())
    assert (asked.digest, asked.to, asked.head) == (line["digest"], "a", Head(1, f"{1:064x}"))
    found, proof = asker.seals.open(
        wire_of(reply.content), request=request_name(request.header), site="a", limits=AMPLE
    )  # fmt: skip
    last = lines(tmp_path)[-1]
    assert last.kind == "payload" and last.facts["digest"] == proof.digest == found.digest
    assert proof.head == Head(last.n, last.digest)  # the line of the reply stands under the reply's own seal


def test_an_old_request_of_the_coordinators_is_not_served_again(tmp_path: Path, site: Context) -> None:
    """Somebody on the way kept genuine requests: of no kind is one served again behind a later one."""
    asker = Asker()
    kept = {kind: asker.sealed(build()) for kind, build in KINDS.items()}
    for kind, wire in kept.items():
        assert failure_of(deliver(wire, kind, site)) is None
    served = len(lines(tmp_path))
    for kind, wire in list(kept.items())[:-1]:
        assert failure_of(deliver(wire, kind, site)) == (failures.STALE, failures.FAILURES[failures.STALE])
    assert [line.kind for line in lines(tmp_path)[served:]] == ["refusal"]  # four, counted in one line


def test_the_message_in_hand_may_come_again_a_few_times(tmp_path: Path, site: Context) -> None:
    """A worker that was killed is given the same message again; not for ever, who ever it is that sends it."""
    asker, request = Asker(), task("train")
    wire = asker.sealed(request)
    first = asker.opened(deliver(wire, "train", site), request)
    for _ in range(REPEATS - 1):
        again = asker.opened(deliver(wire, "train", site), request)
        assert again.tensors.keys() == first.tensors.keys()
        assert all((again.tensors[name] == value).all() for name, value in first.tensors.items())
    assert failure_of(deliver(wire, "train", site)) == (failures.STALE, failures.FAILURES[failures.STALE])
    asker.opened(deliver(asker.sealed(request), "train", site), request)  # a resumed coordinator asks under a new head


def test_a_coordinator_whose_log_was_set_back_is_not_answered(tmp_path: Path, site: Context) -> None:
    asker = Asker(length=40)
    request = query()
    asker.opened(deliver(asker.sealed(request), "query", site), request)
    restored = replace(asker, length=20)
    for wire in (restored.sealed(request), replace(asker, length=40).seals.seal(
            encode(request), to="a", head=Head(41, "f" * 64))):  # fmt: skip
        assert failure_of(deliver(wire, "query", site)) == (failures.STALE, failures.FAILURES[failures.STALE])
    (seen,) = (tmp_path / "a" / "seals").glob("*.json")
    assert read_json(seen)["length"] == 41
    assert seen.stat().st_mode & 0o777 == 0o600
    asker.opened(deliver(asker.sealed(request), "query", site), request)


def test_what_was_seen_of_the_coordinators_log_must_be_readable(tmp_path: Path, site: Context) -> None:
    asker, request = Asker(), query()
    asker.opened(deliver(asker.sealed(request), "query", site), request)
    (seen,) = (tmp_path / "a" / "seals").glob("*.json")
    seen.write_text("{")
    assert failure_of(deliver(asker.sealed(request), "query", site)) == (
        failures.MACHINE, failures.FAILURES[failures.MACHINE]
    )  # fmt: skip


def test_a_flood_of_forgeries_does_not_fill_the_sites_logs(
    tmp_path: Path, site: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(200):
        deliver(encode(query()), "query", site)
    (found,) = facts_of(lines(tmp_path), "refusal")
    assert found["count"] == 1
    assert len((tmp_path / "a" / "site.log").read_text().splitlines()) == 1
    monkeypatch.setattr("client.seals.SAY_AGAIN_S", 0.0)
    deliver(encode(query()), "query", site)
    assert [facts["count"] for facts in facts_of(lines(tmp_path), "refusal")] == [1, 201]
    assert SAY_AGAIN_S >= 600


def test_records_that_are_none_count_as_without_a_seal(tmp_path: Path, site: Context) -> None:
    code = failures.UNSEALED
    for content in (RecordDict(), RecordDict({"payload": ConfigRecord({"body": 1})}),
                    RecordDict({"payload": ConfigRecord({}), "tensors": ArrayRecord({})})):  # fmt: skip
        message = task_message(encode(query()), node=1, message_type="query", ttl=60.0, group="1")
        message.content = content
        set_message_id(message, "1")
        assert failure_of(app(message=message, context=site)) == (code, failures.FAILURES[code])
    assert len(facts_of(lines(tmp_path), "refusal")) == 1


def test_a_paused_site_says_so_to_the_coordinator_only(tmp_path: Path, site: Context) -> None:
    def paused(_: str) -> None:
        raise failures.SiteError(failures.PAUSED)

    client_site._REGISTERED.rules = replace(client_site.site_rules(), gate=paused)  # type: ignore[type-var]
    assert failure_of(deliver(Asker().sealed(query()), "query", site))[0] == failures.PAUSED  # type: ignore[index]
    assert failure_of(deliver(encode(query()), "query", site))[0] == failures.UNSEALED  # type: ignore[index]


def test_an_insecure_trial_takes_requests_without_seals_only(tmp_path: Path) -> None:
    source = toy.ToySource({"a": toy.toy_site("a", 1)})
    client_site.register_source(source, rules=site_rules.rules(tmp_path / "log", "a"))
    where = context(tmp_path)
    assert failure_of(deliver(encode(query()), "query", where)) is None
    assert failure_of(deliver(Asker().sealed(query()), "query", where)) == (
        failures.BAD_REQUEST, failures.FAILURES[failures.BAD_REQUEST]
    )  # fmt: skip


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


def test_every_type_of_message_is_tried_above() -> None:
    assert set(KINDS) == {"train", "evaluate", "conform", "assess", "query", "labels"} == set(FIELDS)
    assert set(TYPES.values()) == {"query.labels", "evaluate.conform", "evaluate.assess"}
    assert OTHER is not COORDINATOR
