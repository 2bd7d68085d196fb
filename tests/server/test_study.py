"""The coordinator's side of a study: made once, the same after a kill, shown before the run; who waits is named."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.site import Rules
from client.studies import kept_study
from fed_diffmic.config.spec import without_paths
from fed_diffmic.errors import ModelFileError, RoundError
from fed_diffmic.exchange.audit import AuditLog, read_lines
from fed_diffmic.exchange.failures import FAILURES, STUDY_RULES, STUDY_WAITS
from fed_diffmic.files import tensors_digest
from server import study as server_study
from server.checkpoints import CheckpointStore
from server.cli import main
from server.hooks import Hooks
from server.stage import begin_stage, exchanged_kinds
from server.status import RunStatus, StatusWriter
from server.strategy import server_algorithm
from server.study import first_digests, stored_study, study_of_run
from tests import studies, toy
from tests.site_rules import ruled_grid
from tests.studies import COORDINATOR

SPEC = toy.toy_spec(ema=0.0)


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def site_rules(folder: Path, rules: Any, names: tuple[str, ...] = ("a", "b")) -> dict[str, Rules]:
    return {name: studies.keeping(folder, rules, name) for name in names}


def run(folder: Path, rules: dict[str, Rules], log: toy.Events | None = None, spec: Any = SPEC, **more: Any) -> Any:
    grid, _ = ruled_grid(folder, rules)
    for name, context in zip(rules, grid._contexts.values(), strict=True):
        context.node_config["site-dir"] = str(folder / name)
    audit = AuditLog(folder / "coordinator.jsonl", COORDINATOR, owner="coordinator")
    names = {node: str(context.node_config["site"]) for node, context in grid._contexts.items()}
    hooks = Hooks(audit=audit, signer=COORDINATOR, names_of_nodes=lambda: names)
    store = CheckpointStore(folder / "run")
    settings = {"stages": ["guidance"], "sites": sorted(rules), "hooks": hooks, "poll_s": 0.01, **more}
    return toy.federate(grid, spec, store, log or toy.Events([]), **settings)


def test_sites_keep_the_study_under_the_coordinators_signature_and_the_logs_name_it(tmp_path: Path) -> None:
    run(tmp_path, site_rules(tmp_path, studies.BY_RULE), test_s=30.0)
    study = stored_study(tmp_path / "run")
    assert study is not None and study.signed_by(COORDINATOR.public_key())
    assert study.spec_text == without_paths(SPEC).to_json()
    for name in ("a", "b"):
        kept = kept_study(tmp_path / name, "toy")
        assert kept is not None and (kept.text, kept.signature) == (study.text, study.signature)
    requests = [line.facts for line in read_lines(tmp_path / "coordinator.jsonl") if line.kind == "request"]
    assert {facts["study"] for facts in requests} == {study.digest}
    tasks = [n.facts for n in read_lines(tmp_path / "log" / "a.audit.jsonl") if n.kind == "task"]
    asked = {facts["request"]: facts for facts in requests}
    for facts in tasks:
        assert {k: asked[facts["request"]].get(k) for k in ("study", "weights", "base")} == {
            k: facts.get(k) for k in ("study", "weights", "base")
        }
    assert CheckpointStore(tmp_path / "run").load().settings["study"] == study.digest  # type: ignore[union-attr]


def test_a_run_that_goes_on_has_the_same_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = site_rules(tmp_path, studies.BY_RULE)

    class Killed(toy.Events):
        def emit(self, kind: str, **facts: Any) -> None:
            super().emit(kind, **facts)
            if kind == "round_done":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, rules, Killed([]))
    before = stored_study(tmp_path / "run")
    monkeypatch.setattr(server_study, "_code", lambda: {"version": "another"})
    final = run(tmp_path, rules)
    assert stored_study(tmp_path / "run") == before and len(final.history) == 2


def test_a_run_whose_study_is_lost_or_another_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"stages": ["guidance"], "sites": ["a"], "test": False}
    study = study_of_run(tmp_path, SPEC, **given, signer=COORDINATOR)
    assert study_of_run(tmp_path, SPEC, **given, signer=COORDINATOR) == study
    other = ec.generate_private_key(ec.SECP256R1())  # a new key signs the same study
    again = study_of_run(tmp_path, SPEC, **given, signer=other)
    assert again.digest == study.digest and again.signed_by(other.public_key())
    for changed in ({"stages": ["plain"]}, {"sites": ["b"]}, {"test": True}):
        with pytest.raises(ModelFileError):
            study_of_run(tmp_path, SPEC, **{**given, **changed})
    with pytest.raises(ModelFileError, match="spec"):
        study_of_run(tmp_path, replace(SPEC, seed=9), **given)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(ModelFileError):
        study_of_run(tmp_path, SPEC, **given)


def test_a_lost_study_that_comes_out_differently_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = site_rules(tmp_path, studies.BY_RULE)
    with pytest.raises(RoundError):
        run(tmp_path, rules, sites=["a", "b", "c"], join_s=1.0)  # nothing is saved before the first round begins
    store = CheckpointStore(tmp_path / "run")
    run(tmp_path, rules, sites=["a", "b", "c"], quorum=0.5, join_s=1.0)
    state = store.load()
    assert state is not None
    (tmp_path / "run" / "final" / "model.json").unlink()
    (tmp_path / "run" / "study.json").unlink()
    monkeypatch.setattr(server_study, "_code", lambda: {"version": "another"})
    with pytest.raises(ModelFileError, match="study"):
        run(tmp_path, rules, sites=["a", "b", "c"], quorum=0.5, join_s=1.0)


def test_the_first_digests_are_those_of_what_the_first_round_sends() -> None:
    kinds = exchanged_kinds(SPEC, "guidance", server_algorithm(SPEC.strategy, SPEC.stage("guidance")))
    begun = begin_stage(SPEC, "guidance", kinds, None)
    assert first_digests(SPEC, "guidance") == {
        "base": tensors_digest(begun.frozen),
        "weights": tensors_digest(begun.current),
    }


def test_the_coordinator_waits_for_people_and_names_them(tmp_path: Path) -> None:
    rules, log = site_rules(tmp_path, studies.BY_RULE), toy.Events([])
    rules["b"] = studies.keeping(tmp_path, studies.BY_PERSON, "b")
    status = StatusWriter(tmp_path, RunStatus("toy", "x", False), lambda: None, lambda n: n)

    class Watched(toy.Events):
        def emit(self, kind: str, **facts: Any) -> None:
            super().emit(kind, **facts)
            status({"kind": kind, **facts})

    log = Watched([])

    def person() -> None:
        until = time.monotonic() + 60
        while (not log.of("site_waits") or time.monotonic() < over) and time.monotonic() < until:
            time.sleep(0.01)
        seen.append(vars(status.site("b")) | {})
        rules["b"].studies.approve("toy", "dr-who")

    seen: list[dict[str, Any]] = []
    over = time.monotonic() + 3.2
    thread = threading.Thread(target=person)
    thread.start()
    final = run(tmp_path, rules, log, join_s=3.0)  # a person is waited for beyond the time in which sites must appear
    thread.join()
    assert set(final.history[0]["sites"]) == {"a", "b"}
    waits = [event for event in log.of("site_waits") if event["site"] == "b"]
    assert waits and waits[0]["code"] == STUDY_WAITS
    assert (seen[0]["state"], seen[0]["reason"]) == ("waits", FAILURES[STUDY_WAITS])
    assert status.site("b").state == "replied"


def test_a_site_that_waits_to_the_end_is_named_with_the_sentence(tmp_path: Path) -> None:
    rules = site_rules(tmp_path, studies.BY_RULE)
    rules["b"] = studies.keeping(tmp_path, studies.BY_PERSON, "b")
    with pytest.raises(RoundError, match=f"b: {FAILURES[STUDY_WAITS]}"):
        run(tmp_path, rules, deadline_s=1.0)
    refusing = replace(studies.BY_RULE, ranges={"stages.lr": [0.0, 1e-6]})
    with pytest.raises(RoundError, match=f"b: {FAILURES[STUDY_RULES]}"):
        run(tmp_path, rules | {"b": studies.keeping(tmp_path, refusing, "b")}, join_s=1.0)


def test_a_site_whose_folder_is_another_gets_the_study_again(tmp_path: Path) -> None:
    rules = site_rules(tmp_path, studies.BY_RULE)

    class Lost(toy.Events):
        def emit(self, kind: str, **facts: Any) -> None:
            super().emit(kind, **facts)
            if kind == "round_done" and facts["round"] == 1:
                (tmp_path / "b" / "studies" / "toy.study.json").rename(tmp_path / "lost")

    log = Lost([])
    final = run(tmp_path, rules, log, spec=replace(SPEC, stages=replace(SPEC.stages, guidance=replace(
        SPEC.stages.guidance, rounds=3))), quorum=0.5)  # fmt: skip
    assert [sorted(row["sites"]) for row in final.history] == [["a", "b"], ["a"], ["a", "b"]]


def test_the_study_is_shown_before_the_run_starts(tmp_path: Path, capsys: Any) -> None:
    settings = [
        "model=tiny", "security.insecure=true", "consortium.sites=[a, b]", "consortium.classes=[x, y]",
        "consortium.task=multiclass", "stages.guidance.batch_size=1",
    ]  # fmt: skip
    config, out = tmp_path / "server.yaml", tmp_path / "study.json"
    config.write_text("seed: 3\n", encoding="utf-8")
    command = ["study", "--config", str(config), f"run.dir={tmp_path / 'pilot'}", "--out", str(out), *settings]
    assert main(command) == 0
    said = capsys.readouterr().out
    for words in ("Study of the run pilot", "exactly the preset `tiny`", "such a step shows a single image", "x, y",
                  "Sites expected: a, b.", "spec.stages.guidance.batch_size: 1"):  # fmt: skip
        assert words in said
    assert json.loads(json.loads(out.read_text())["study"])["run"] == "pilot"
    assert not (tmp_path / "pilot").exists()
    assert main(["study", "--config", str(config), *settings]) == 2
    assert "run.dir" in capsys.readouterr().err
    assert main(["study", "--config", str(config), "run.dir=x", "security.insecure=true", "consortium.sites=[a]"]) == 2
    assert "consortium.classes" in capsys.readouterr().err
