"""The whole preflight, its parts and its trial in a process of its own."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from client.preflight.check import worst
from client.preflight.estimate import StageEstimate
from client.preflight.run import Expected, preflight
from client.preflight.trial import Trial, _report, check_trial, measure
from fed_diffmic.config.compose import compose
from fed_diffmic.config.spec import parse_dataclass


def expected():
    tiny = compose(None, ["model=tiny", "stages=tiny"])
    return Expected(tiny.model, tiny.stages)


def look(site, parts):
    seen = []
    checks = preflight(site, expected(), seen.append, parts)
    assert seen == checks
    return {check.name: check for check in checks}


@pytest.mark.slow
def test_a_site_that_is_ready(site, way, address, kit_of):
    kit_of(address=address)
    checks = look(way(site, address=address), ("machine", "credentials", "network", "data", "trial"))
    assert worst(checks.values()) in ("passed", "warning")
    assert {name.split(".")[0] for name in checks} >= {"machine", "credentials", "network", "data", "trial"}
    assert checks["trial.step"].facts["peak_bytes"] > 10**8
    for stage in ("guidance", "diffusion"):
        facts = checks[f"trial.{stage}"].facts
        assert facts["round_s"] == pytest.approx(facts["train_s"] + facts["evaluate_s"])
        assert facts["update_bytes"] > 0
    log = Path(site.site.folder) / "preflight.log"
    assert "JaneDoe" not in log.read_text()
    assert not list(Path(site.site.folder).glob(".preflight-*"))


def test_a_configuration_without_anything_gets_as_far_as_it_can():
    from fed_diffmic.config.site import SiteConfig

    checks = look(SiteConfig(), ("machine", "credentials", "network", "data", "trial"))
    assert checks["configuration"].level == "failed"
    assert {check.exit_code for check in checks.values()} == {0, 2}


def test_data_that_cannot_be_used_are_not_tried(site):
    (Path(site.dataset.root) / "JaneDoe3.png").write_bytes(b"no image")
    checks = look(site, ("data", "trial"))
    assert (checks["trial.step"].level, checks["trial.step"].exit_code) == ("failed", 3)
    assert not (Path(site.site.folder) / "preflight.log").exists()


def test_only_what_was_asked_for(site):
    assert {name.split(".")[0] for name in look(site, ("credentials",))} == {"configuration", "credentials"}


def test_a_trial_that_takes_too_long_is_killed(site, monkeypatch):
    from client.preflight import trial

    started = []
    real = trial.start_child
    monkeypatch.setattr(trial, "start_child", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    Path(site.site.folder).mkdir(mode=0o700)
    ask = expected()
    start = time.monotonic()
    (check,) = check_trial(site, ask.model, ask.stages, timeout_s=0.3)
    assert time.monotonic() - start < 10
    assert (check.level, check.exit_code) == ("failed", 6)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)
    assert not list(Path(site.site.folder).glob(".preflight-*"))


def test_the_trial_measures_both_stages(site):
    """In this process: what the child does and hands back, as JSON can carry it."""
    ask = expected()
    few = replace(ask.stages, guidance=replace(ask.stages.guidance, steps=3))
    few = replace(few, diffusion=replace(few.diffusion, steps=3))
    said = json.loads(json.dumps(measure(Trial(asdict(site), asdict(ask.model), asdict(few), budget_s=0.1))))
    assert said["device"] == "cpu"
    assert [item["stage"] for item in said["stages"]] == ["guidance", "diffusion"]
    estimates = [parse_dataclass(StageEstimate, item, "trial") for item in said["stages"]]
    checks = list(_report(estimates, "cpu", ask.model, most_s=1e-6))
    assert [check.level for check in checks] == ["passed", "passed", "warning", "warning"]  # the policy allows less
    assert "policy" in checks[-1].cause
    assert {check.level for check in _report(estimates, "cpu", ask.model, most_s=0)} == {"passed"}


@pytest.mark.slow
def test_what_the_trial_meets_comes_back_in_words(site):
    """A device that is not there: the child says so in our words and code."""
    Path(site.site.folder).mkdir(mode=0o700)
    ask = expected()
    missing = replace(site, site=replace(site.site, device=["cuda:97"]))
    (check,) = check_trial(missing, ask.model, ask.stages, timeout_s=240)
    assert (check.level, check.exit_code) == ("failed", 6)
    assert "cuda:97" in check.cause and check.remedy
