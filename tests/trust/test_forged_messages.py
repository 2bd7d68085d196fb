"""Who only carries messages, or has a key of another site's, can neither ask a site nor answer for one.

Every case is refused before it is an answer in the site's files, a line that stands for a served request, or a reply
that the coordinator counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from client import site as client_site
from client.app import app
from client.requests import FIELDS
from client.seals import REPEATS, SAY_AGAIN_S
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import Head, Line, read_lines, verify
from fed_diffmic.exchange.payload import Payload, Wire, decode, encode, request_name
from fed_diffmic.exchange.seal import read_request_seal
from fed_diffmic.files import read_json
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import failure_of, task_message, wire_of
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


def of_kind(kind: str, **own: Any) -> Payload:
    """A request of another kind about the same round as one to train."""
    base = task("train").header
    return Payload(kind, {**{name: base[name] for name in FIELDS[kind] if name in base}, **own})


FORGED_ALONE: dict[str, Callable[[], Payload]] = {
    "mask": lambda: of_kind("mask", session="{}", step="advertise", given={}),
    "deliver": lambda: of_kind("deliver", site="a", model="0" * 64, size=1, model_json="{}", provenance="{}"),
}
"""What an honest coordinator asks only beside much else: tests/client/test_masking.py, test_delivery.py."""


@pytest.mark.parametrize("kind", [*KINDS, *FORGED_ALONE])
@pytest.mark.parametrize("name", FORGERIES)
def test_a_request_that_is_not_the_coordinators_own_is_refused_and_leaves_nothing(
    tmp_path: Path, site: Context, name: str, kind: str
) -> None:
    forge, code = FORGERIES[name]
    assert failure_of(deliver(forge({**KINDS, **FORGED_ALONE}[kind]()), kind, site)) == (code, failures.FAILURES[code])
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


def test_every_type_of_message_is_tried_above() -> None:
    assert {*KINDS, *FORGED_ALONE} == set(FIELDS)
    assert {*TYPES, "train", "evaluate", "query"} == set(FIELDS)
    assert OTHER is not COORDINATOR
