"""``fed-diffmic policy explain --run`` and ``approve``: what people at a site see and type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.start import site_audit, site_studies
from client.studies import kept_approval, kept_study
from fed_diffmic.cli import main
from fed_diffmic.config.compose import compose_site
from fed_diffmic.exchange.audit import read_lines, verify
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.provision.keys import load_private, make_site_key, public_text
from tests import toy
from tests.studies import COORDINATOR, query, study_of


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A site that has a key, the coordinator's public key and the policy ``closed``."""
    make_site_key(tmp_path / "site.key")
    (tmp_path / "coordinator.pub").write_text(public_text(COORDINATOR.public_key()) + "\n")
    (tmp_path / "state").mkdir(mode=0o700)
    value = {
        "site": {"name": "a", "folder": str(tmp_path / "state")},
        "coordinator": {"key": str(tmp_path / "site.key"), "public_key": str(tmp_path / "coordinator.pub")},
        "policy": "closed",
    }
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def comes(config: Path, study: Any) -> None:
    """The coordinator's first request of a run."""
    site = compose_site(config, [])
    with pytest.raises(SiteError, match="waits for a person"):
        site_studies(site, site_audit(site)).check("query", query(study))


def said(capsys: Any, *command: str) -> str:
    assert main(["policy", *command]) == 0
    return str(capsys.readouterr().out)


def test_a_person_reads_the_study_approves_it_and_the_next_one_says_what_is_new(config: Path, capsys: Any) -> None:
    named = ["--config", str(config), "--run", "toy"]
    assert main(["policy", "explain", *named]) == 2
    assert main(["policy", "approve", *named]) == 2
    assert "no study of the run toy" in capsys.readouterr().err
    assert not (config.parent / "state" / "audit.jsonl").exists()
    comes(config, study_of())
    text = said(capsys, "explain", *named)
    digest = study_of().digest
    for words in (
        digest,
        "It bears the signature",
        "Nobody has approved it",
        f"policy approve --config {config} --run toy",
        "2 rounds of 1 passes",
        "This site has approved no study of another run",
        "spec.seed: 3",
        "none of policy.study.models",
    ):
        assert words in text
    assert "Approved by dr-who" in said(capsys, "approve", *named, "--by", "dr-who")
    assert "dr-who approved it on" in said(capsys, "explain", *named)
    site = compose_site(config, [])
    site_studies(site, site_audit(site)).check("query", query(study_of()))
    key, folder = load_private(config.parent / "site.key").public_key(), config.parent / "state"
    study = kept_study(folder, "toy")
    assert study is not None
    approval = kept_approval(folder, study, key)
    assert approval is not None and (approval.by, approval.study) == ("dr-who", digest)
    assert verify(folder / "audit.jsonl", key) == []
    assert [n.facts["by"] for n in read_lines(folder / "audit.jsonl") if n.kind == "approval"] == ["dr-who"]

    second = study_of(replace(toy.toy_spec(lr=0.5), run_id="second"), test=False)
    comes(config, second)
    text = said(capsys, "explain", "--config", str(config), "--run", "second")
    assert "spec.stages.guidance.lr: 0.01 in toy, 0.5 here" in text and "test: true in toy, false here" in text
    assert "spec.seed: 3 in" not in text


def test_the_policy_says_who_agrees(config: Path, capsys: Any) -> None:
    assert "until a person approved its study" in said(capsys, "explain", "--config", str(config))
    standard = said(capsys, "explain", "--config", str(config), "policy=standard")
    assert "tiny, compact, paper" in standard and "stages.clip_norm: [0.01, 100.0]" in standard
