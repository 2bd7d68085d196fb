"""Real sites' rules on summed figures: who gives none, what leaves, and that nothing leaves by itself.

Faults seen: figures that leave without being judged, a site below its floors in a sum, a plain question answered
in a masked run, a site whose policy gives none that evaluates all the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client import tasks
from client.masked_rules import Clearance, hold_to_study
from client.summed import says_figures
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import PROBLEM, compare
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.masking.figures import NO_SUM
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import SitePolicy
from server.masked_figures import SummedFigures
from server.sites import Sites
from tests import toy
from tests.client.masked import NAMES, STRICT, codes, consortium, log_of, run
from tests.site_rules import NO_FLOORS

GIVES = {**STRICT, "summed_metrics": True}


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def told(folder: Path, name: str) -> list[Any]:
    """Replies with figures that left a site."""
    return [line for line in log_of(folder, name) if line.facts.get("reply") == "evaluate.reply"]


def test_figures_leave_as_words_of_sums_alone_and_both_logs_agree(tmp_path: Path) -> None:
    grid, _ = consortium(tmp_path, **{k: v for k, v in GIVES.items() if k not in STRICT})
    final, events = run(tmp_path, grid, rounds=2)
    assert not events.of("site_refused") and not events.of("site_failed") and not events.of("figures_missing")
    assert all(set(row["mean"]) == {"loss", "auroc_macro"} and row["val"] == {} for row in final.history)
    assert final.history[-1]["summed"]["sites"] == list(NAMES) and events.of("calibrated")[0]["images"] > 0
    coordinator = read_lines(tmp_path / "coordinator.jsonl")
    for name in NAMES:
        lines = log_of(tmp_path, name)
        assert [line.facts["tensors"][0][:2] for line in told(tmp_path, name)] == [["masked", "int64"]] * 3
        assert all(line.facts["figures"] == {} for line in told(tmp_path, name))
        purposes = [line.facts["purpose"] for line in lines if line.kind == "masked_set"]
        assert purposes == ["train", "evaluate", "train", "evaluate", "calibrate", "conform"]
        found = compare(lines, coordinator, site=name, run="toy")
        assert [one.text for one in found if one.level == PROBLEM] == []
    sums = [line.facts["set"] for line in coordinator if line.kind == "masked_set"]
    assert len(sums) == 6 and all(json.loads(text)["summed"] == list(NAMES) for text in sums)


@pytest.mark.parametrize(
    "changes",
    [
        {"summed_metrics": False},
        {"metrics": ["num_examples", "images", "loss"]},
        {"min_count": 8},
        {"floors": replace(NO_FLOORS, figure_patients=8)},
    ],
    ids=["not summed", "not named", "few images", "few patients"],
)
def test_a_site_that_gives_no_figures_says_so_before_it_gives_keys_and_evaluates_nothing(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, real = [], tasks.predict_scores

    def watched(module: Any, examples: Any, *given: Any, **more: Any) -> Any:
        evaluated.append(len(examples))
        return real(module, examples, *given, **more)

    monkeypatch.setattr(tasks, "predict_scores", watched)
    grid, rules = consortium(tmp_path, summed_metrics=True)
    grid.rules["b"] = replace(rules["b"], policy=SitePolicy(replace(rules["b"].policy.config, **changes)))
    final, events = run(tmp_path, grid)
    assert not events.of("site_failed") and not codes(tmp_path, "b") and not told(tmp_path, "b")
    assert final.history[0]["summed"]["sites"] == ["a", "c", "d"] and len(evaluated) == 2 * 3
    assert sorted(final.history[0]["sites"]) == list(NAMES)


def test_too_few_images_for_the_calibrations_table_are_enough_for_a_figure(tmp_path: Path) -> None:
    """``floors.sums_images``: the site's figures are in the sum of a round, its table in none."""
    grid, rules = consortium(tmp_path, summed_metrics=True)
    for name in NAMES:
        floors: Floors = replace(NO_FLOORS, sums_images=1000)
        rules[name].policy.config = replace(rules[name].policy.config, floors=floors)
    final, events = run(tmp_path, grid)
    assert final.history[0]["summed"]["sites"] == list(NAMES)
    assert not events.of("site_failed")
    assert [row["purpose"] for row in events.of("figures_missing")] == ["calibrate", "conform"]
    assert events.of("calibrated")[0]["images"] == 0


def test_weights_that_diverge_at_one_site_are_no_word_about_that_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers as the others do; the sum is none, for a reason that names nobody."""
    real = tasks.predict_scores

    def scores(module: Any, examples: Any, *given: Any, **more: Any) -> Any:
        found = real(module, examples, *given, **more)
        return found * float("nan") if next(calls) == 1 else found

    calls = iter(range(1000))
    monkeypatch.setattr(tasks, "predict_scores", scores)
    grid, _ = consortium(tmp_path, summed_metrics=True)
    final, events = run(tmp_path, grid)
    assert not events.of("site_failed") and not events.of("site_refused")
    (missing,) = events.of("figures_missing")
    assert missing["reason"] == NO_SUM and missing["purpose"] == "evaluate"
    assert all(len(told(tmp_path, name)) == 2 and not codes(tmp_path, name) for name in NAMES)
    assert "summed" not in final.history[0]


def test_a_plain_question_for_figures_gets_none_in_a_masked_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the policy would let each figure leave a run that is not masked."""
    monkeypatch.setattr(SummedFigures, "evaluate", Sites.evaluate)
    grid, _ = consortium(tmp_path, secure_aggregation="allowed")
    with pytest.raises(Exception, match="policy on secure aggregation"):
        run(tmp_path, grid)
    for name in NAMES:
        assert codes(tmp_path, name) == {failures.POLICY_MASKING} and not told(tmp_path, name)


def test_figures_that_nobody_judged_do_not_leave() -> None:
    clearance = Clearance(SitePolicy(PolicyConfig()))
    request = Payload("evaluate", {"masked": {}})
    with pytest.raises(SiteError):
        clearance.check(Payload("evaluate.reply", {}), request)
    clearance.check(Payload("evaluate.reply", {}), Payload("evaluate", {}))


def test_sums_are_of_the_sites_that_the_runs_study_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = toy.toy_spec()
    study = SimpleNamespace(document={"sites": ["a", "b", "c"]}, spec=lambda: spec)
    monkeypatch.setattr("client.masked_rules.kept_study", lambda folder, run: study)
    site: Any = SimpleNamespace(masking=SimpleNamespace(among=None), folder=tmp_path)
    header = {"run": "toy", "stage": "guidance", "round": 1}
    hold_to_study(site, Payload("train", header))
    assert site.masking.among == {"a", "b", "c"}
    drawn = replace(spec, strategy=replace(spec.strategy, participation=0.34))
    study.spec = lambda: drawn
    hold_to_study(site, Payload("train", header))
    assert len(site.masking.among) == 1
    hold_to_study(site, Payload("evaluate", header))  # all are asked for figures
    assert site.masking.among == {"a", "b", "c"}


@pytest.mark.parametrize("purpose", ["evaluate", "calibrate", "test"])
def test_a_site_that_protects_another_stage_and_suppresses_its_figures_says_so_in_the_place_of_keys(
    purpose: str,
) -> None:
    """It computes none of any stage: with keys and no words it would end a sum that the others could have had."""
    privacy = PrivacyConfig(name="dp_sgd", stages=["guidance"], validation="suppressed", allow_unprotected=True)
    site: Any = SimpleNamespace(privacy=privacy, data=toy.toy_site("a", 1), judge=None)
    request = Payload("mask", {"stage": "diffusion"})
    assert not says_figures(site, toy.toy_spec(), request, purpose)
    site.privacy = replace(privacy, validation="listed")
    assert says_figures(site, toy.toy_spec(), request, purpose)
