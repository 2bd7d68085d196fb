"""A side that writes its own log anew, chained and signed as it should be, is convicted by what it signed before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.cli import main
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import compare
from fed_diffmic.exchange.audit_findings import PROBLEM
from fed_diffmic.exchange.seal import read_reply_seal, read_request_seal
from fed_diffmic.provision.keys import public_text
from server.checkpoints import CheckpointStore
from tests import seals, site_rules, toy
from tests.trust.made_logs import RUN, Logs, digest_of, forge

Edit = Callable[[dict[str, Any]], dict[str, Any] | None]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logs:
    monkeypatch.setattr("os.fsync", lambda _: None)
    return Logs(tmp_path).run()


def verify(logs: Logs, site: str = "a") -> int:
    folder = logs.folder
    own = [str(logs.path(site)), "--key", str(folder / f"{site}.key.pub")]
    other = ["--against", str(logs.path("coordinator")), "--against-key", str(folder / "coordinator.key.pub")]
    return main(["audit", "verify", *own, *other, "--run", RUN])


def problems(logs: Logs, site: str = "a") -> list[str]:
    here, there = read_lines(logs.path(site)), read_lines(logs.path("coordinator"))
    return [f.text for f in compare(here, there, site=site, run=RUN) if f.level == PROBLEM]


def test_two_honest_logs_agree(logs: Logs, capsys: pytest.CaptureFixture[str]) -> None:
    for site in ("a", "b"):
        assert verify(logs, site) == 0
        said = capsys.readouterr().out
        assert "heads of its chain, 6 of the coordinator's" in said
        assert "no problems" in said


def test_a_coordinator_that_writes_its_whole_log_anew_is_convicted_by_any_site(
    logs: Logs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other weights, a site's payload left out, checkpoints gone, every time another one."""

    def edit(line: dict[str, Any]) -> dict[str, Any] | None:
        if line["kind"] == "aggregate":
            line["facts"] |= {"weights": "ab" * 32, "payloads": {"ghost": "cd" * 32}}
        return None if line["kind"] == "checkpoint" else {**line, "time": "2026-11-01T00:00:00.000+00:00"}

    logs.forge("coordinator", edit)
    for site in ("a", "b"):
        assert verify(logs, site) == 4
        said = capsys.readouterr().out
        assert "the other side saw another line" in said
        assert "the signature of the coordinator (key " in said
        seal, signature = re.findall(r"seal (\{.*\}) signature (\S+)", said)[0]
        shown = read_request_seal(seal, signature, logs.keys["coordinator"].public_key())  # anybody can check it
        assert shown.to == site
        assert read_lines(logs.path("coordinator"))[shown.head.length - 1].digest != shown.head.digest


def test_a_coordinator_that_cut_its_log_is_convicted(logs: Logs, capsys: pytest.CaptureFixture[str]) -> None:
    path = logs.path("coordinator")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-6]))
    assert verify(logs) == 4
    said = capsys.readouterr().out
    assert "which is not here" in said and "the signature of the coordinator" in said


def test_a_site_that_writes_its_log_anew_is_convicted(logs: Logs, capsys: pytest.CaptureFixture[str]) -> None:
    logs.forge("a", lambda line: None if of("payload", 1)(line) else line)
    assert verify(logs) == 4
    said = capsys.readouterr().out
    seal, signature = re.findall(r"the signature of the site a .* seal (\{.*\}) signature (\S+)", said)[0]
    assert read_reply_seal(seal, signature, logs.keys["a"].public_key()).site == "a"


def test_a_log_that_does_not_say_whose_it_is_is_refused(logs: Logs, capsys: pytest.CaptureFixture[str]) -> None:
    logs.forge("a", lambda line: None if line["kind"] == "opened" else line)
    assert verify(logs) == 4
    assert "does not say whose log it is" in capsys.readouterr().err


def test_a_seal_that_the_coordinator_did_not_make_accuses_nobody_but_its_keeper(
    logs: Logs, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "task":
            line["facts"]["seal"] = line["facts"]["seal"].replace('"length":', '"length":9')
        return line

    logs.forge("a", edit)
    assert verify(logs) == 4
    said = capsys.readouterr().out
    assert "of the site's log is not the coordinator's over that request" in said
    assert "the signature of the coordinator" not in said


def test_a_site_that_took_seals_off_some_requests_is_noticed(logs: Logs, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "task" and line["facts"]["task"] == "assess":
            del line["facts"]["seal"], line["facts"]["seal_signature"]
        return line

    logs.forge("a", edit)
    assert verify(logs) == 4
    assert "carry no seal, and others do" in capsys.readouterr().out


def of(kind: str, index: int | None = None) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line["kind"] == kind and index in (None, line["facts"].get("round"))


def without(which: Callable[[dict[str, Any]], bool]) -> Edit:
    return lambda line: None if which(line) else line


def other(which: Callable[[dict[str, Any]], bool], **facts: Any) -> Edit:
    return lambda line: {**line, "facts": {**line["facts"], **facts}} if which(line) else line


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without(of("aggregate", 1)), "no line says what it went into"),
        (other(of("aggregate", 1), payloads={}), "taken without a refusal, and left out"),
        (other(of("aggregate", 1), payloads={"a": "cd" * 32}), "names another payload of the site"),
        (
            other(of("aggregate", 1), sent="ab" * 32),
            "round 2, train: the site was sent other weights than what round 1",
        ),
        (other(of("aggregate", 1), candidate="ab" * 32), "round 1, evaluate: the site was sent other weights"),
        (other(of("aggregate", 2), candidate="ab" * 32), "what was chosen is not what round 2 made"),
        (other(of("chosen"), candidate=digest_of("candidate", 1)), "round 0, assess: the site was sent other weights"),
        (without(of("chosen")), "round 0, evaluate: the site was sent other weights than what was chosen"),
        (without(of("begun")), "a base that the coordinator's log does not name"),
        (other(of("begun"), sent="ab" * 32), "other weights than what the stage began with"),
        (without(of("checkpoint", 1)), "round 1: later rounds follow, and no line says that it was complete"),
        (without(of("checkpoint", 2)), "round 2: later rounds follow, and no line says that it was complete"),
        (other(of("request", 1), weights="ab" * 32), "the two logs name a different weights"),
        (other(of("request", 1), study="ab" * 32), "the two logs name a different study"),
        (other(of("request", 1), digest="ab" * 32), "asked something else than the coordinator's log says"),
    ],
)
def test_what_a_coordinator_leaves_out_or_exchanges_is_found_even_without_seals(
    logs: Logs, edit: Edit, says: str
) -> None:
    assert problems(logs) == []
    logs.forge("coordinator", edit)
    assert any(says in text for text in problems(logs)), problems(logs)


def test_a_payload_of_nobody_inside_an_aggregate_is_found(logs: Logs) -> None:
    def edit(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "aggregate":
            line["facts"]["payloads"]["ghost"] = "cd" * 32
        return line

    logs.forge("coordinator", edit)
    assert any("a payload of ghost that did not come" in text for text in problems(logs))


def test_a_refusal_or_a_restart_explains_what_did_not_go_in(logs: Logs) -> None:
    def edit(line: dict[str, Any]) -> dict[str, Any]:
        facts = line["facts"]
        if line["kind"] == "aggregate" and facts["round"] == 1:
            del facts["payloads"]["a"]
        if line["kind"] == "reply" and facts["site"] == "b" and facts["reply"] == "train.reply" and facts["round"] == 1:
            place = {name: facts[name] for name in ("run", "arm", "stage", "round")}
            line = {**line, "kind": "refusal", "facts": {"site": "a", **place, "code": "norm"}}
        return line

    before = logs.path("coordinator").read_bytes()
    logs.forge("coordinator", edit)
    assert not [text for text in problems(logs) if "left out" in text]
    logs.path("coordinator").write_bytes(before)
    logs.forge("coordinator", lambda line: {**edit(line), "kind": "resumed"} if line["kind"] == "begun" else edit(line))
    assert not [text for text in problems(logs) if "left out" in text]


def test_times_that_run_backwards_or_came_after_they_were_seen_are_found(
    logs: Logs, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.forge(
        "coordinator", lambda line: {**line, "time": "2020-01-01T00:00:00+00:00"} if line["kind"] == "chosen" else line
    )
    verify(logs)
    assert "the times of the coordinator's log run backwards" in capsys.readouterr().out
    logs.forge("a", lambda line: {**line, "time": "2099-01-01T00:00:00+00:00"})
    verify(logs)
    assert "backwards" in capsys.readouterr().out


def test_logs_of_an_earlier_version_still_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No seals, no digests of weights, sites known by Flower's number until they have a name."""
    logs = Logs(tmp_path, sealed=False).run()

    def older(line: dict[str, Any]) -> dict[str, Any] | None:
        for name in ("weights", "base", "study", "candidate", "sent"):
            line["facts"].pop(name, None)
        if line["kind"] == "site":
            line["facts"] = {"run": RUN, "site": line["facts"]["site"], "node": f"node {line['facts']['site']}1"}
        return None if line["kind"] in ("begun", "chosen") else line

    logs.forge("coordinator", older)
    for site in ("a", "b"):
        logs.path(site).write_bytes(logs.path(site).read_bytes())
        here, there = read_lines(logs.path(site)), read_lines(logs.path("coordinator"))
        assert [f for f in compare(here, there, site=site, run=RUN) if "study" in f.text] == []
    logs.forge("a", older)
    # the anchors that the coordinator kept are of the log before it was made older: so they are taken out with it
    logs.forge("coordinator", lambda line: {**line, "facts": {k: v for k, v in line["facts"].items() if k != "anchor"}})
    assert verify(logs) == 0
    assert "holds no head that the coordinator signed" in capsys.readouterr().out


def test_a_run_under_seals_convicts_whoever_writes_its_log_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The product's own logs of two sites and a coordinator, honest, and then each side's made anew."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    toy.install_toy_networks(monkeypatch.setattr)
    ruled = {name: seals.sealed_rules(tmp_path / "logs", name, tmp_path / "state" / name) for name in ("a", "b")}
    grid, _ = site_rules.ruled_grid(tmp_path, ruled)
    hooks = seals.sealed_hooks(tmp_path / "run", ("a", "b"))
    given: dict[str, Any] = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001, "test_s": 60.0}
    store = CheckpointStore(tmp_path / "run")
    toy.federate(grid, toy.toy_spec(), store, toy.Events([]), hooks=hooks, **given)
    keys = {"coordinator": seals.COORDINATOR, "a": seals.SITE_KEYS["a"]}
    for name, key in keys.items():
        (tmp_path / f"{name}.pub").write_text(public_text(key.public_key()) + "\n")
    there, here = tmp_path / "run" / "audit.jsonl", tmp_path / "logs" / "a.audit.jsonl"
    command = ["audit", "verify", str(here), "--key", str(tmp_path / "a.pub"), "--run", "toy"]
    command += ["--against", str(there), "--against-key", str(tmp_path / "coordinator.pub")]
    assert main(command) == 0
    assert "8 of the coordinator's" in capsys.readouterr().out
    honest = there.read_bytes()
    forge(there, seals.COORDINATOR, without(of("checkpoint")))
    assert main(command) == 4
    assert "the signature of the coordinator (key " in capsys.readouterr().out
    there.write_bytes(honest)
    forge(here, seals.SITE_KEYS["a"], other(of("payload", 1), figures={}))
    assert main(command) == 4
    assert "the signature of the site a (key " in capsys.readouterr().out
