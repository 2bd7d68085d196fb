"""``fed-diffmic audit`` and ``policy``: what they print and how they end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.cli import main
from fed_diffmic.commands import audit
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.privacy.audit import subject
from fed_diffmic.privacy.audit.bound import lower_bound
from fed_diffmic.privacy.audit.report import WORDS, Size
from fed_diffmic.provision.keys import load_private, make_site_key


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A site's log and the coordinator's, of one payload that both have."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    for name in ("site", "coordinator"):
        make_site_key(tmp_path / f"{name}.key")
    here = AuditLog(tmp_path / "site.jsonl", load_private(tmp_path / "site.key"), owner="a")
    there = AuditLog(tmp_path / "run.jsonl", load_private(tmp_path / "coordinator.key"), owner="coordinator")
    asked = {"run": "pilot", "arm": "federated", "stage": "plain", "round": 1, "request": "r1"}
    there.append("request", site="a", task="train", digest="q", bytes=5, **asked)
    head = here.append("task", task="train", digest="q", bytes=5, **asked)
    here.append("payload", reply="train.reply", digest="p", bytes=7, **asked)
    anchor = {"length": head.length, "digest": head.digest}
    there.append("reply", site="a", reply="train.reply", digest="p", bytes=7, anchor=anchor, **asked)
    return {"folder": tmp_path, "site": here, "coordinator": there}


def verify(folder: Path, *more: str) -> int:
    return main(["audit", "verify", str(folder / "site.jsonl"), "--key", str(folder / "site.key.pub"), *more])


def against(folder: Path) -> list[str]:
    return ["--against", str(folder / "run.jsonl"), "--against-key", str(folder / "coordinator.key.pub")]


def test_logs_that_agree(logs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = logs["folder"]
    assert verify(folder) == 0
    assert "3 lines by a, no problems" in capsys.readouterr().out
    assert verify(folder, *against(folder), "--run", "pilot") == 0
    assert "compared: 1 runs of the site a, 1 heads of its chain" in capsys.readouterr().out


def test_a_payload_that_the_coordinator_does_not_admit(
    logs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"run": "pilot", "arm": "federated", "stage": "plain", "round": 2, "request": "r2"}
    logs["site"].append("payload", reply="train.reply", digest="hidden", bytes=7, **facts)
    assert verify(logs["folder"], *against(logs["folder"])) == 4
    assert "problem: run pilot, stage plain, round 2: payload hidden was sent" in capsys.readouterr().out


def test_a_changed_line_and_the_wrong_key(logs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = logs["folder"]
    path = folder / "site.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"bytes":7', b'"bytes":8'))
    assert verify(folder) == 4
    assert "line 3: line 3 was changed" in capsys.readouterr().out
    assert main(["audit", "verify", str(path), "--key", str(folder / "coordinator.key.pub")]) == 4
    assert "not signed by that key" in capsys.readouterr().out


def test_a_log_that_was_cut(logs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = logs["folder"] / "site.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert verify(logs["folder"], *against(logs["folder"])) == 4
    assert "the other side saw line 2, which is not here" in capsys.readouterr().out


def test_mistakes_on_the_command_line(logs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = logs["folder"]
    assert verify(folder, *against(folder)[:2]) == 2
    assert "belong together" in capsys.readouterr().err
    assert verify(folder, "--run", "pilot") == 2
    assert main(["audit", "model", str(folder)]) == 4


def test_a_request_for_a_timestamp_is_not_written_over_the_log(
    logs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    log = logs["folder"] / "site.jsonl"
    before = log.read_bytes()
    (logs["folder"] / "link.tsq").symlink_to(log)
    for out in (log, logs["folder"] / "link.tsq"):
        assert main(["audit", "stamp", str(log), "--out", str(out)]) == 2
        assert "is also LOG, which would be written over" in capsys.readouterr().err
    assert main(["audit", "stamp", str(log), "--out", str(logs["folder"])]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert log.read_bytes() == before and verify(logs["folder"]) == 0


@pytest.mark.parametrize("attack", ["privacy", "inversion"])
def test_an_attack_does_not_begin_whose_result_could_not_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    config = tmp_path / "site.yaml"
    config.write_text("site:\n  name: mercy\n")
    for out, said in ((tmp_path, "is a folder"), (config, "is also --config"), (config / "o.json", "is no folder")):
        assert main(["audit", attack, "--config", str(config), "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    assert config.read_text() == "site:\n  name: mercy\n"


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a quarter of the size."""
    compose = subject.compose
    side = ["model.image_side=32", "model.regions=2"]
    monkeypatch.setattr(subject, "compose", lambda file, given: compose(file, [*given, *side]))


@pytest.mark.usefixtures("small_pictures")
def test_an_audit_of_privacy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight canaries count in one of two runs: a right guess of each shows less than a third of the claim."""
    scaled, out = Size.scaled, tmp_path / "audit.json"
    monkeypatch.setattr(Size, "scaled", lambda self, runs: replace(scaled(self, runs), gradient_canaries=8))
    assert lower_bound(8, 8, 8, 1e-5) < 4.0 / 3
    small = ["audit", "privacy", "--runs", "2", "privacy.unit=image", "privacy.physical_batch=64"]
    assert main([*small, "--out", str(out)]) == 5  # two runs prove nothing, and that is said
    said = capsys.readouterr()
    assert "INCONCLUSIVE" in said.out and "gradient: 2 of 2 runs" in said.err
    found = json.loads(out.read_text())
    assert found["verdict"] == "inconclusive" and set(found["attacks"]) == {"gradient", "picture", "loss", "again"}
    assert found["claim"]["epsilon"] == pytest.approx(4.0, rel=0.01)
    assert found["attacks"]["again"]["guesses"] == 0


def test_what_the_help_says_is_what_the_audit_does() -> None:
    """The command line names them itself, so that ``--help`` need not load torch."""
    assert Size().gradient_runs == audit._RUNS
    assert set(audit._EXIT) == set(WORDS)


@pytest.mark.usefixtures("small_pictures")
def test_noise_from_a_fixed_seed_is_refuted_however_few_runs_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["audit", "privacy", "--runs", "2", "privacy.unit=image", "privacy.physical_batch=64"]
    assert main([*small, "privacy.test_seed=0"]) == 4
    assert "REFUTED" in capsys.readouterr().out


def test_an_audit_of_what_cannot_be_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["privacy=none"], "nothing to audit"),
        (["--runs", "1"], "--runs 1"),
        (["--epsilon", "0"], "--epsilon 0"),
        (["--epsilon", "8"], "at most 7"),
        (["privacy.delta=0.5"], "privacy.delta"),
        (["privacy.unit=crop"], "privacy.unit"),
        (["--config", str(tmp_path / "missing.yaml")], "missing.yaml"),
        (["--out", str(tmp_path / "none" / "audit.json")], "none"),
    ):
        assert main(["audit", "privacy", *arguments]) == 2, arguments
        assert words in capsys.readouterr().err


def test_the_policy_says_which_stages_train_with_which_epsilon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "site.yaml"
    config.write_text("site:\n  name: mercy\npolicy: standard\nprivacy: {name: dp_sgd, epsilon: 3.5, delta: 0.001}\n")

    def said(*more: str) -> str:
        assert main(["policy", "explain", "--config", str(config), *more]) == 0
        return capsys.readouterr().out.partition("Privacy\n")[2]

    text = said()
    assert "The stages guidance and diffusion train with differential privacy, for one patient more or less." in text
    assert "epsilon 3.5" in text and "delta 0.001" in text and "is not bounded" not in text
    assert "one run may spend at most a third of what is left" in text and "one round by itself a third of it" in text
    one = said("privacy.stages=[diffusion]", "policy.budget.run_share=0.25")
    assert "The stage diffusion trains with" in one and "The stage guidance is refused" in one
    assert "a share of 0.25 of what is left" in one
    assert "no epsilon holds" in said("privacy.stages=[diffusion]", "privacy.allow_unprotected=true")
    assert "Noise of 1.5 times" in said("privacy.noise_multiplier=1.5", "privacy.budget=8")
    assert "is not bounded" in said("privacy.name=none")


def test_the_policy_in_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "site.yaml"
    config.write_text("site:\n  name: mercy\npolicy: standard\n")
    assert main(["policy", "explain", "--config", str(config), "policy.runs=[pilot]"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Policy of the site mercy\n")
    assert "Runs that may use the data: pilot." in out
    assert main(["policy", "explain", "--config", str(config), "policy.hours=[nightly]"]) == 2
    assert "policy.hours" in capsys.readouterr().err
