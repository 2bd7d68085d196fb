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
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import PROBLEM, compare
from fed_diffmic.exchange.masking.kept import KeptSum
from fed_diffmic.exchange.masking.session import SECOND_SET, MaskingError
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.policy import SitePolicy
from fed_diffmic.release.edition import site_edition
from fed_diffmic.release.final import load_final
from fed_diffmic.training.together import site_sums, together
from server.masked_figures import SummedFigures
from server.sites import Sites
from tests import toy
from tests.client.masked import NAMES, codes, consortium, log_of, run
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
    assert (missing["purpose"], missing["reason"]) == ("test", "the model gives no finite scores at a site of the sum")
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
    real, again, why = SummedFigures.assess, [], []
    advertise = MaskingSite.advertise

    def advertised(self: MaskingSite, *given: Any) -> Any:
        try:
            return advertise(self, *given)
        except MaskingError as error:
            why.append(error.reason)
            raise

    monkeypatch.setattr(MaskingSite, "advertise", advertised)

    def twice(self: Any, request: Any) -> Any:
        first = real(self, request)
        moved = {name: value + np.asarray(1, value.dtype) for name, value in request.tensors.items()}
        with monkeypatch.context() as patch:
            patch.setattr(KeptSum, "resume", lambda *_: None)
            patch.setattr(KeptSum, "begin", lambda *_: 2)
            again.append(real(self, replace(request, tensors=moved, parcel=None)))
        return first

    monkeypatch.setattr(SummedFigures, "assess", twice)
    grid, _ = consortium(tmp_path, summed_metrics=True, metrics=NAMED)
    final, _ = run(tmp_path, grid, test_s=60.0)
    assert final.together and again[0].summed == {}
    assert why == [SECOND_SET] * len(NAMES) and all(codes(tmp_path, name) for name in NAMES)
