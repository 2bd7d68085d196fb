"""Test images of a masked run's sites: counts in one sum over the run's company, and nothing of one site.

Faults seen: a plain question for test images answered in a masked run, a sum over other sites than those of validation,
a second sum of other weights, figures that nobody judged.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import tasks
from client.masked_figures import _form, _purpose
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import PROBLEM, compare
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.figures import NO_SUM
from fed_diffmic.exchange.masking.session import SECOND_SET, MaskingError
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.policy import SitePolicy
from fed_diffmic.release.edition import site_edition
from fed_diffmic.release.final import load_final
from fed_diffmic.training.together import site_sums, together
from server.masked_figures import SummedFigures
from server.sites import Sites
from tests import toy
from tests.client.masked import NAMES, ask_twice, codes, consortium, log_of, run
from tests.site_rules import KEY, NO_FLOORS

NAMED = ["num_examples", "images", "loss", "auroc_macro", "nll/*", "sets/*", "unsure/*", "test/*", "points/*"]


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def told(folder: Path, name: str) -> list[Any]:
    return [line for line in log_of(folder, name) if line.facts.get("reply") == "assess.reply"]


def test_the_sum_is_of_all_sites_test_images_and_nothing_of_one_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []

    def watched(scored: Any) -> dict[str, float]:
        seen.append(site_sums(scored))
        return seen[-1]

    monkeypatch.setattr(tasks, "site_sums", watched)
    grid, _ = consortium(tmp_path, summed_metrics=True, metrics=NAMED)
    final, events = run(tmp_path, grid, test_s=60.0)
    assert not events.of("site_failed") and not events.of("figures_missing") and final.matrix == {}
    assert len(seen) == len(NAMES)
    total = {name: sum(one[name] for one in seen) for name in seen[0]}
    expected = together(total, list(final.spec.classes), final.spec.task)
    assert expected["n"] == sum(one["num_examples"] for one in seen)
    found = dict(final.together["guidance"])
    assert found.pop("sites") == list(NAMES) and found.pop("ece") == pytest.approx(expected.pop("ece"), abs=1e-5)
    assert found == expected  # counts are exact
    assert load_final(tmp_path / "run").together == final.together
    assert "together" not in json.loads(site_edition(final, {}, "a", KEY).model_json)
    (assessed,) = events.of("assessed")
    assert assessed["sites"] == list(NAMES)
    coordinator = read_lines(tmp_path / "coordinator.jsonl")
    for name in NAMES:
        (line,) = told(tmp_path, name)
        assert [tensor[:2] for tensor in line.facts["tensors"]] == [["masked", "int64"]] and line.facts["figures"] == {}
        found_in_logs = compare(log_of(tmp_path, name), coordinator, site=name, run="toy")
        assert [one.text for one in found_in_logs if one.level == PROBLEM] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"summed_metrics": False},
        {"metrics": NAMED[:-2]},
        {"metrics": NAMED[:-1]},
        {"floors": replace(NO_FLOORS, sums_images=7)},
    ],
    ids=["not summed", "no test metrics", "no points", "few images"],
)
def test_whoever_may_not_say_it_leaves_the_whole_company_silent(changes: dict[str, Any], tmp_path: Path) -> None:
    """Its validation figures are in the run's sums (but in the first case), so that test figures over the others alone
    would be of another set: there are none."""
    grid, rules = consortium(tmp_path, summed_metrics=True, metrics=NAMED)
    grid.rules["b"] = replace(rules["b"], policy=SitePolicy(replace(rules["b"].policy.config, **changes)))
    final, events = run(tmp_path, grid, test_s=60.0)
    assert not told(tmp_path, "b") and not events.of("site_failed")
    if changes == {"summed_metrics": False}:
        assert final.together["guidance"]["sites"] == ["a", "c", "d"]
        return
    assert final.together == {} and final.matrix == {}
    assert "test" in {row["purpose"] for row in events.of("figures_missing")}


def test_weights_without_finite_scores_at_one_site_end_the_figures_and_name_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tasks.judged

    def judged(scores: Any, examples: Any, *given: Any) -> Any:
        return real(scores * np.nan if next(calls) == 1 else scores, examples, *given)

    calls = iter(range(100))
    monkeypatch.setattr(tasks, "judged", judged)
    grid, _ = consortium(tmp_path, summed_metrics=True, metrics=NAMED)
    final, events = run(tmp_path, grid, test_s=60.0)
    assert final.together == {} and not events.of("site_failed")
    (missing,) = events.of("figures_missing")
    assert (missing["purpose"], missing["reason"]) == ("test", NO_SUM)
    assert all(len(told(tmp_path, name)) == 1 and not codes(tmp_path, name) for name in NAMES)


def test_a_plain_question_for_test_images_gets_none_in_a_masked_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SummedFigures, "assess", Sites.assess)
    grid, _ = consortium(tmp_path, secure_aggregation="allowed", metrics=["*"])
    final, _ = run(tmp_path, grid, test_s=60.0)
    assert all(codes(tmp_path, name) == {failures.POLICY_MASKING} and not told(tmp_path, name) for name in NAMES)
    assert {cell["n"] for cell in final.matrix["guidance"].values()} == {0}


def test_a_second_sum_of_test_images_is_refused_whatever_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that asks about other weights when the sum of the first ones is open."""
    again, why = ask_twice(monkeypatch, "assess"), []
    advertise = MaskingSite.advertise

    def advertised(self: MaskingSite, *given: Any) -> Any:
        try:
            return advertise(self, *given)
        except MaskingError as error:
            why.append(error.reason)
            raise

    monkeypatch.setattr(MaskingSite, "advertise", advertised)

    grid, _ = consortium(tmp_path, summed_metrics=True, metrics=NAMED)
    final, _ = run(tmp_path, grid, test_s=60.0)
    assert final.together and again[0].summed == {}
    assert why == [SECOND_SET] * len(NAMES) and all(codes(tmp_path, name) for name in NAMES)


@pytest.mark.parametrize("purpose", ["evaluate", "calibrate", "test"])
def test_weights_that_fail_at_all_sites_but_one_do_not_leave_that_ones_figures(
    purpose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator makes weights that overflow on the images of a, b and c, and takes what those give in their place
    (zeros, or the bound) away from the sum."""
    real, unmask, own, sums = tasks.masked_figures, MaskedSum.unmask, [], []

    def figures(site: Any, spec: Any, request: Any, metrics: Any) -> Any:
        if _purpose(request) != purpose:
            return real(site, spec, request, metrics)
        if site.name == "d":
            own.append(_form(spec, request).encode(metrics))
        return real(site, spec, request, metrics if site.name == "d" else None)

    def unmasked(self: MaskedSum) -> Any:
        found = unmask(self)
        sums.extend([found] if self.session.purpose == purpose else [])
        return found

    monkeypatch.setattr(tasks, "masked_figures", figures)
    monkeypatch.setattr(MaskedSum, "unmask", unmasked)
    grid, _ = consortium(tmp_path, summed_metrics=True, metrics=NAMED)
    _, events = run(tmp_path, grid, test_s=60.0)
    rest = (sums[0] - own[0]).view("<i8")
    assert len(sums) == len(own) == 1 and len(set(rest.tolist())) == len(rest) >= 3
    assert np.count_nonzero(rest % 2**20) >= len(rest) - 1  # no whole numbers of images, and no bound
    assert purpose in {row["purpose"] for row in events.of("figures_missing") if row["reason"] == NO_SUM}


def test_a_site_that_says_a_thousand_times_its_images_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counts add up, and all other sites' would count for nothing beside them."""
    lies = iter([1000.0, *[1.0] * 3])

    def many(scored: Any) -> dict[str, float]:
        factor = next(lies)
        return {name: factor * value for name, value in site_sums(scored).items()}

    monkeypatch.setattr(tasks, "site_sums", many)
    grid, _ = consortium(tmp_path, secure_aggregation="allowed", metrics=["*"])
    final, events = run(tmp_path, grid, test_s=60.0)
    (missing,) = events.of("figures_missing")
    assert final.together == {} and "more images than its sites said" in missing["reason"]


def test_what_all_others_tell_by_themselves_leaves_the_number_of_ones_test_images(tmp_path: Path) -> None:
    """A limit: d requires masks and tells no number of its test images; a, b and c tell theirs."""
    grid, rules = consortium(tmp_path, secure_aggregation="allowed", metrics=["*"])
    strict = replace(rules["d"].policy.config, secure_aggregation="required", summed_metrics=True)
    grid.rules["d"] = replace(rules["d"], policy=SitePolicy(strict))
    final, events = run(tmp_path, grid, test_s=60.0)
    told_by = {row["site"]: row["images"]["test"] for row in events.of("site_found")}
    assert told_by.pop("d") is None and all(told_by.values())
    (line,) = [line for line in log_of(tmp_path, "d") if line.facts.get("reply") == "assess.reply"]
    assert line.facts["figures"] == {}
    assert final.together["guidance"]["n"] - sum(told_by.values()) == len(toy.toy_site("d", 4).test)
