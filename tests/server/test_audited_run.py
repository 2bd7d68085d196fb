"""A federation of sites with policies and logs, in process: same weights, two logs that agree, a signed model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from fed_diffmic.errors import ModelFileError, RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import AuditLog, read_lines, verify
from fed_diffmic.exchange.audit_compare import anchors, compare
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.provision.keys import fingerprint
from fed_diffmic.release.final import architecture_of, load_final
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from tests import site_rules, toy

COORDINATOR = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def hooks(folder: Path, **more: Any) -> Hooks:
    folder.mkdir(parents=True, exist_ok=True)
    audit = AuditLog(folder / "audit.jsonl", COORDINATOR, owner="coordinator")
    return Hooks(audit=audit, signer=COORDINATOR, **more)


def federate(folder: Path, grid: Any, hooks: Hooks | None = None, events: Any = None, **settings: Any) -> Any:
    given = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 30.0, **settings}
    return toy.federate(grid, toy.toy_spec(), CheckpointStore(folder), events or toy.Events([]), hooks=hooks, **given)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: ``run/`` with the coordinator's log, ``logs/`` with the sites'."""
    folder = tmp_path_factory.mktemp("audited")
    with pytest.MonkeyPatch.context() as patch:
        toy.install_toy_networks(patch.setattr)
        patch.setattr("os.fsync", lambda _: None)
        ruled = {name: site_rules.rules(folder / "logs", name) for name in ("a", "b")}
        grid, _ = site_rules.ruled_grid(folder, ruled)
        federate(folder / "run", grid, hooks(folder / "run"))
    return folder


def both(folder: Path, site: str) -> tuple[list[Any], list[Any]]:
    return read_lines(folder / "logs" / f"{site}.audit.jsonl"), read_lines(folder / "run" / "audit.jsonl")


def test_policies_and_logs_change_no_bit(audited: Path, tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    plain = federate(tmp_path / "plain", grid)
    assert load_final(audited / "run").digests == plain.digests


def test_both_logs_are_whole_and_agree(audited: Path) -> None:
    for site in ("a", "b"):
        here, there = both(audited, site)
        seen = anchors(there, site=site)
        # who are you, two rounds of training and evaluation, the calibration, counts for sets
        assert len(seen) == 7
        assert verify(audited / "logs" / f"{site}.audit.jsonl", site_rules.KEY.public_key(), seen) == []
        assert compare(here, there, site=site, run="toy") == []
        kinds = [line.kind for line in here]
        assert kinds.count("payload") == 7
        assert kinds.count("task") == 7
    assert verify(audited / "run" / "audit.jsonl", COORDINATOR.public_key()) == []
    kinds = [line.kind for line in both(audited, "a")[1]]
    assert kinds.count("aggregate") == kinds.count("checkpoint") == 2


def test_a_payloads_line_says_what_left(audited: Path) -> None:
    line = next(n for n in both(audited, "a")[0] if n.kind == "payload" and n.facts["reply"] == "train.reply")
    facts = line.facts
    assert [row[0] for row in facts["tensors"]] == sorted(
        ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
         "head.weight", "head.bias"]
    )  # fmt: skip
    assert ["head.weight", "float32", [3, 8]] in facts["tensors"]
    assert 0 < facts["norm"] < 100
    assert facts["figures"]["num_examples"] == 12
    assert set(facts["figures"]) == {"num_examples", "loss", "loss_images", "steps", "seconds"}
    assert len(facts["digest"]) == 64
    assert facts["bytes"] == 4 * (4 * 8 + 3 * 8 + 3) + 8


def test_a_payload_that_one_side_hides_is_found(audited: Path) -> None:
    here, there = both(audited, "a")
    payload = next(line for line in here if line.kind == "payload" and line.facts["reply"] == "train.reply")
    digest = payload.facts["digest"]
    hidden = [line for line in here if line.facts.get("digest") != digest]
    (found,) = compare(hidden, there, site="a", run="toy")
    assert (found.level, digest[:16] in found.text) == ("problem", True)
    found, inside = compare(here, [n for n in there if n.facts.get("digest") != digest], site="a", run="toy")
    assert found.level == inside.level == "problem"
    assert "the aggregate has a payload of a that did not come" in inside.text
    assert "does not have it" in found.text
    changed = [replace(n, facts={**n.facts, "bytes": 1}) if n.facts.get("digest") == digest else n for n in there]
    (found,) = compare(here, changed, site="a", run="toy")
    assert "different numbers of bytes" in found.text
    secret = [n for n in there if n.facts.get("request") != payload.facts["request"]]
    assert {f.level for f in compare(here, secret, site="a", run="toy")} == {"problem"}
    assert any("does not say so" in f.text for f in compare(here, secret, site="a", run="toy"))


def test_a_log_that_was_cut_and_continued_is_found(audited: Path, tmp_path: Path) -> None:
    raw = (audited / "logs" / "a.audit.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(raw[:-6]))
    log = AuditLog(cut, site_rules.KEY, owner="a")
    for _ in range(8):
        log.append("payload", run="toy")
    assert verify(cut, site_rules.KEY.public_key()) == []  # the chain alone cannot know
    seen = anchors(both(audited, "a")[1], site="a")
    assert {p.code for p in verify(cut, site_rules.KEY.public_key(), seen)} == {"rewritten"}


def test_the_final_model_is_signed_and_says_where_it_comes_from(audited: Path) -> None:
    final = load_final(audited / "run", public_key=COORDINATOR.public_key())
    assert final.signed_by == fingerprint(COORDINATOR.public_key())
    statement = json.loads((audited / "run" / "final" / "provenance.json").read_text())["statement"]
    assert [(r["stage"], r["round"]) for r in statement["rounds"]] == [("guidance", 1), ("guidance", 2)]
    there = {line.facts["digest"] for line in both(audited, "a")[1] if line.kind == "reply"}
    named = {d for r in statement["rounds"] for task in r["payloads"].values() for d in task.values()}
    assert len(named) == 8
    assert named <= there
    assert set(statement["heads"]) == {"a", "b"}
    assert statement["spec"]["seed"] == 3
    assert statement["coordinator_head"]["length"] > 20
    assert statement["code"]["packages"]["torch"]


def tampered(audited: Path, tmp_path: Path, name: str, old: str, new: str) -> Path:
    import shutil

    shutil.copytree(audited / "run" / "final", tmp_path / "final")
    path = tmp_path / "final" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("provenance.json", '"seed": 3', '"seed": 4', "does not hold"),
        ("model.json", '"seed": 3', '"seed": 4', "not the one that was signed"),
    ],
)
def test_a_changed_model_is_refused(audited: Path, tmp_path: Path, name: str, old: str, new: str, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        load_final(tampered(audited, tmp_path, name, old, new))


def test_another_signer_another_architecture_and_no_signature_are_refused(audited: Path, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(ModelFileError, match="not by"):
        load_final(audited / "run", public_key=other)
    right = architecture_of(toy.toy_spec(), "guidance")
    assert load_final(audited / "run", architecture={"guidance": right}).signed_by
    with pytest.raises(ModelFileError, match="another architecture"):
        load_final(audited / "run", architecture={"guidance": "0" * 64})
    grid, _ = toy.toy_grid(tmp_path)
    plain = federate(tmp_path / "plain", grid)
    assert plain.origin.startswith("not signed")
    with pytest.raises(ModelFileError, match="is not signed"):
        load_final(tmp_path / "plain", public_key=COORDINATOR.public_key())


def test_a_run_killed_between_rounds_continues_under_the_same_policies(tmp_path: Path, audited: Path) -> None:
    class Killed(site_rules.RuledGrid):
        left = 7

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            type(self).left -= 1
            if type(self).left == 0:
                raise KeyboardInterrupt
            return super().pull_messages(message_ids)

    for stop in (3, 5, 7, 9):  # after who-are-you: inside training, evaluation, second training, second evaluation
        folder = tmp_path / str(stop)
        ruled = {name: site_rules.rules(folder / "logs", name) for name in ("a", "b")}
        grid, _ = site_rules.ruled_grid(folder, ruled)
        grid.__class__, Killed.left = Killed, stop + 2
        with pytest.raises(KeyboardInterrupt):
            federate(folder / "run", grid, hooks(folder / "run"))
        grid, _ = site_rules.ruled_grid(folder, ruled)
        final = federate(folder / "run", grid, hooks(folder / "run"))
        assert final.digests == load_final(audited / "run").digests
        for site in ("a", "b"):
            assert [f for f in compare(*both(folder, site), site=site, run="toy") if f.level == "problem"] == []


def test_a_withdrawn_site_is_asked_for_nothing_more(tmp_path: Path) -> None:
    asked: list[str] = []

    def gate(kind: str) -> None:
        asked.append(kind)
        if kind == "train" and asked.count("train") > 1:
            raise SiteError(failures.WITHDRAWN)

    ruled = {"a": site_rules.rules(tmp_path, "a"), "b": site_rules.rules(tmp_path, "b", gate)}
    grid, _ = site_rules.ruled_grid(tmp_path, ruled)
    events = toy.Events([])
    final = federate(tmp_path / "run", grid, events=events, quorum=0.5)
    assert asked == ["query", "train", "evaluate", "train"]
    assert [e["site"] for e in events.of("site_withdrew")] == ["b"]
    assert set(final.history[-1]["sites"]) == {"a"}


def test_a_paused_site_is_asked_again_while_the_round_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.replies.AGAIN_S", 0.02)
    pauses = iter([failures.PAUSED, failures.POLICY_HOURS])

    def gate(kind: str) -> None:
        code = next(pauses, None) if kind == "train" else None
        if code is not None:
            raise SiteError(code)

    ruled = {"a": site_rules.rules(tmp_path, "a"), "b": site_rules.rules(tmp_path, "b", gate)}
    grid, _ = site_rules.ruled_grid(tmp_path, ruled)
    events = toy.Events([])
    final = federate(tmp_path / "run", grid, events=events)
    assert [e["code"] for e in events.of("site_waits")] == [failures.PAUSED, failures.POLICY_HOURS]
    assert set(final.history[0]["sites"]) == {"a", "b"}


def test_a_quorum_without_the_paused_site_does_not_wait_and_the_deadline_ends_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.replies.AGAIN_S", 0.05)

    def gate(kind: str) -> None:
        if kind == "train":
            raise SiteError(failures.PAUSED)

    ruled = {"a": site_rules.rules(tmp_path, "a"), "b": site_rules.rules(tmp_path, "b", gate)}
    grid, _ = site_rules.ruled_grid(tmp_path, ruled)
    final = federate(tmp_path / "run", grid, quorum=0.5, deadline_s=60.0)
    assert final.history[0]["missing"] == {"b": failures.FAILURES[failures.PAUSED]}
    assert final.history[0]["seconds"] < 30.0
    grid, _ = site_rules.ruled_grid(tmp_path / "all", ruled)
    with pytest.raises(RoundError, match="b: the site is paused"):
        federate(tmp_path / "all", grid, deadline_s=1.0)


def test_a_site_that_keeps_the_calibrations_sums_back_does_not_stop_the_run(tmp_path: Path) -> None:
    metrics = ["images", "class_counts", "num_examples", "loss"]
    ruled = {"a": site_rules.rules(tmp_path, "a"), "b": site_rules.rules(tmp_path, "b", metrics=metrics)}
    grid, source = site_rules.ruled_grid(tmp_path, ruled)
    final = federate(tmp_path / "run", grid)
    assert final.calibration["guidance"].n == len(source.sites["a"].val)
    assert set(final.history[0]["val"]["b"]) == {"num_examples", "loss"}
    assert "auroc_macro" in final.history[0]["val"]["a"]
