"""Counts for prediction sets of a masked run's sites: one sum over the run's company, and nothing of one site.

Faults seen: a plain question for counts answered in a masked run, a second sum of other weights, a sum over other sites
than those of validation, a sum of other cells, a sum before the end that is followed by further rounds, single images
in the sum of a site that lets none out, few errors of some sites that leave the others' sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import site as client_site
from client import sureness
from client.site import Site
from client.summed import says_figures
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import PROBLEM, compare
from fed_diffmic.exchange.masking import figures
from fed_diffmic.exchange.masking.session import SECOND_SET, MaskingError
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.policy import SitePolicy
from fed_diffmic.release.final import load_final
from fed_diffmic.training import few
from fed_diffmic.training.calibration import uncalibrated
from fed_diffmic.training.sureness import counts_from, fit
from server import masked_figures
from server.exchange import AssessRequest
from server.masked import MaskedSites
from server.masked_figures import SummedFigures
from server.sites import Sites
from tests import toy
from tests.client.masked import NAMES, ask_twice, codes, consortium, log_of, run
from tests.site_rules import NO_FLOORS

NAMED = ["num_examples", "images", "class_counts", "loss", "auroc_macro", "nll/*", "sets/*", "unsure/*"]
SUMMED = {"summed_metrics": True, "metrics": NAMED}


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def told(folder: Path, name: str) -> list[Any]:
    return [line for line in log_of(folder, name) if line.facts.get("reply") == "conform.reply"]


def larger(grid: Any, images: int = 160) -> Any:
    """The sites with more images: sets of less than everything, and enough right and wrong predictions."""
    source = client_site._REGISTERED.source
    assert isinstance(source, toy.ToySource)
    source.sites |= {name: toy.toy_site(name, seed, images) for seed, name in enumerate(NAMES, start=1)}
    return grid


def test_sets_and_the_test_of_uncertainty_are_those_of_a_run_without_masks(tmp_path: Path) -> None:
    """Of the same sites under the same rules, which let no count of fewer than five images out."""
    grid, _ = consortium(tmp_path / "1", **SUMMED, min_count=5)
    masked, events = run(tmp_path / "1", larger(grid))
    assert not events.of("site_failed") and not events.of("figures_missing")
    grid, _ = consortium(tmp_path / "2", **SUMMED, min_count=5, secure_aggregation="allowed")
    plain, _ = run(tmp_path / "2", larger(grid), strategy=StrategyConfig())
    sure = masked.sureness["guidance"]
    assert sure == plain.sureness["guidance"]
    assert (sure.n, sure.sites, sure.silent) == (160, NAMES, ()) and sure.rules and sure.measures
    assert 0 < sure.rules[1].overall[0] < few.CELLS
    assert load_final(tmp_path / "1" / "run").sureness == masked.sureness
    (said,) = events.of("conformed")
    assert (said["images"], said["sites"], said["silent"]) == (160, list(NAMES), [])
    coordinator = read_lines(tmp_path / "1" / "coordinator.jsonl")
    for name in NAMES:
        (line,) = told(tmp_path / "1", name)
        assert [tensor[:2] for tensor in line.facts["tensors"]] == [["masked", "int64"]] and line.facts["figures"] == {}
        sets = [line.facts["purpose"] for line in log_of(tmp_path / "1", name) if line.kind == "masked_set"]
        assert sets == ["train", "evaluate", "calibrate", "conform"]
        found = compare(log_of(tmp_path / "1", name), coordinator, site=name, run="toy")
        assert [one.text for one in found if one.level == PROBLEM] == []


def test_the_sum_holds_what_each_site_would_let_out_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images of a class, and cells of few, are as they would leave; only a measure of few errors is in it all the
    same, for else whoever chose the weights would choose so of how few sites the sum is."""
    counted: list[dict[str, float]] = []
    real, encode = sureness.site_counts, figures.FigureForm.encode
    words: list[dict[str, float]] = []

    def counting(*given: Any) -> dict[str, float]:
        counted.append(real(*given))
        return counted[-1]

    def encoding(self: Any, metrics: Any) -> Any:
        words.extend([dict(metrics)] if "sets/squares" in self.names else [])
        return encode(self, metrics)

    monkeypatch.setattr(sureness, "site_counts", counting)
    monkeypatch.setattr(figures.FigureForm, "encode", encoding)
    grid, _ = consortium(tmp_path, **SUMMED, min_count=14, floors=replace(NO_FLOORS, figure_patients=2))
    final, _ = run(tmp_path, larger(grid))
    assert len(counted) == len(words) == len(NAMES)
    for exact, said in zip(counted, words, strict=True):
        assert {n: v for n, v in said.items() if v} == few.told(exact, 14, 2, summed=True)
        left = few.told(exact, 14, 2)
        assert {n: v for n, v in said.items() if n.startswith("sets/")} == {
            n: v for n, v in left.items() if n.startswith("sets/")
        }
        assert any("/rest/" in name for name in said) and not any(name.startswith("owners/") for name in said)
    alone = {name: counts_from(few.told(one, 14, 2), "multiclass", 3) for name, one in zip(NAMES, counted, strict=True)}
    plain = fit({name: one for name, one in alone.items() if one is not None}, [], "multiclass", 3, guarded=False)
    assert final.sureness["guidance"].rules == plain.rules and len(alone) == len(NAMES)


@pytest.mark.parametrize(
    "changes",
    [
        {"summed_metrics": False},
        {"metrics": [name for name in NAMED if name != "sets/*"]},
        {"metrics": [name for name in NAMED if name != "unsure/*"]},
        {"floors": replace(NO_FLOORS, sums_images=7)},
        {"min_count": 7},
    ],
    ids=["not summed", "no sets", "no measures", "few images for a table", "few images"],
)
def test_whoever_may_not_say_it_is_silent_before_keys_and_so_is_the_company(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    grid, rules = consortium(tmp_path, **SUMMED)
    grid.rules["b"] = replace(rules["b"], policy=SitePolicy(replace(rules["b"].policy.config, **changes)))
    final, events = run(tmp_path, grid)
    assert not told(tmp_path, "b") and not events.of("site_failed") and not codes(tmp_path, "b")
    sure = final.sureness["guidance"]
    if set(changes) <= {"summed_metrics", "min_count"}:  # it is in no sum of figures, and not in the company
        assert (sure.sites, sure.silent) == (("a", "c", "d"), ("b",))
        return
    assert (sure.n, sure.rules, sure.sites, sure.silent) == (0, (), (), NAMES)
    assert "conform" in {row["purpose"] for row in events.of("figures_missing")}


def test_a_site_that_protects_any_stage_and_keeps_its_figures_back_is_in_no_sum(tmp_path: Path) -> None:
    site = Site("a", tmp_path, toy.toy_site("a", 1), "cpu")
    request: Any = type("Asked", (), {"header": {"stage": "guidance"}})()
    for purpose in ("evaluate", "calibrate", "conform", "test"):
        assert says_figures(site, toy.toy_spec(), request, purpose)
        other = PrivacyConfig(name="dp_sgd", stages=["diffusion"], nominal_units=12, weight=3, allow_unprotected=True)
        assert not says_figures(replace(site, privacy=other), toy.toy_spec(), request, purpose)
        assert says_figures(
            replace(site, privacy=replace(other, validation="listed")), toy.toy_spec(), request, purpose
        )


def test_weights_without_finite_scores_at_one_site_end_the_counts_and_name_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = sureness.predict_doubts, iter(range(100))

    def doubts(*given: Any) -> Any:
        scores, others = real(*given)
        return scores * np.nan if next(calls) == 1 else scores, others

    monkeypatch.setattr(sureness, "predict_doubts", doubts)
    grid, _ = consortium(tmp_path, **SUMMED)
    final, events = run(tmp_path, grid)
    assert final.sureness["guidance"].silent == NAMES and not events.of("site_failed")
    (missing,) = events.of("figures_missing")
    assert (missing["purpose"], missing["reason"]) == ("conform", figures.NO_SUM)
    assert all(len(told(tmp_path, name)) == 1 and not codes(tmp_path, name) for name in NAMES)


def test_a_plain_question_for_counts_gets_none_in_a_masked_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the policy would let them leave another run: beside a sum they would be the others' by subtraction."""
    monkeypatch.setattr(SummedFigures, "conform", Sites.conform)
    grid, _ = consortium(tmp_path, secure_aggregation="allowed", metrics=["*"])
    final, _ = run(tmp_path, grid)
    assert all(codes(tmp_path, name) == {failures.POLICY_MASKING} and not told(tmp_path, name) for name in NAMES)
    assert final.sureness["guidance"].silent == NAMES


Conform = Callable[[Any, AssessRequest], Any]


def why_refused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Reason, site and step of each refusal of the sites' parts in masked sums."""
    found: list[tuple[str, str, str]] = []
    for step in ("advertise", "commit"):
        real = getattr(MaskingSite, step)

        def watched(self: MaskingSite, *given: Any, real: Any = real, step: str = step) -> Any:
            try:
                return real(self, *given)
            except MaskingError as error:
                found.append((error.reason, self.name, step))
                raise

        monkeypatch.setattr(MaskingSite, step, watched)
    return found


def test_a_second_sum_of_counts_is_refused_whatever_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why, again = why_refused(monkeypatch), ask_twice(monkeypatch, "conform")
    grid, _ = consortium(tmp_path, **SUMMED)
    final, _ = run(tmp_path, grid)
    assert final.sureness["guidance"].n == 24 and again[0].summed == {}
    assert why == [(SECOND_SET, name, "advertise") for name in NAMES]


def test_counts_over_fewer_sites_than_the_runs_figures_are_signed_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less the sums over all, they would be the count of images of the one that is left out."""
    why, real = why_refused(monkeypatch), SummedFigures.conform

    def fewer(self: Any, request: AssessRequest) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(SummedFigures, "_company", lambda _: NAMES[:3])
            return real(self, request)

    monkeypatch.setattr(SummedFigures, "conform", fewer)
    grid, _ = consortium(tmp_path, **SUMMED)
    final, _ = run(tmp_path, grid)
    assert final.sureness["guidance"].n == 0
    assert why == [(SECOND_SET, name, "commit") for name in NAMES[:3]]


@pytest.mark.parametrize("asked", ["other cells", "another calibration for one"])
def test_a_sum_of_anything_else_than_all_sites_know_gets_no_words(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells of one class alone; or probabilities that one site is told to calibrate in another way."""
    real, questions = masked_figures.figure_form, masked_figures.asked_words

    def form(spec: Any, stage: str, purpose: str, *given: Any) -> Any:
        found = real(spec, stage, purpose, *given)
        return replace(found, counts=found.counts[:500]) if purpose == "conform" else found

    def words(sealed: Any, masked: Any, site: str) -> dict[str, Any]:
        other = {"calibration": uncalibrated(np.full(3, 1 / 3), "multiclass").to_json()}
        return {**questions(sealed, masked, site), **(other if masked.session.purpose == "conform" else {})}

    if asked == "other cells":
        monkeypatch.setattr(masked_figures, "figure_form", form)
    else:
        told_other = {"d": words}
        monkeypatch.setattr(masked_figures, "asked_words", lambda s, m, n: told_other.get(n, questions)(s, m, n))
    grid, _ = consortium(tmp_path, **SUMMED)
    final, events = run(tmp_path, grid)
    refused = NAMES if asked == "other cells" else ("d",)
    assert final.sureness["guidance"].n == 0 and events.of("figures_missing")[0]["purpose"] == "conform"
    assert all(codes(tmp_path, name) == {failures.MASKING} and not told(tmp_path, name) for name in refused)


def test_counts_before_the_end_are_the_last_thing_that_a_stage_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are given once; whoever asks for them after the first of two rounds has them of that, and no second one."""
    real, early = MaskedSites.train, []

    def train(self: Any, request: Any) -> Any:
        if request.round_index == 2 and not early:
            fitted = uncalibrated(np.full(3, 1 / 3), "multiclass")
            early.append(self.conform(AssessRequest(request.task, request.sent, fitted, time.monotonic() + 60.0)))
        return real(self, request)

    monkeypatch.setattr(MaskedSites, "train", train)
    grid, _ = consortium(tmp_path, **SUMMED)
    with pytest.raises(RoundError):
        run(tmp_path, grid, rounds=2)
    assert early[0].summed["num_examples"] == 24.0
    assert all(codes(tmp_path, name) == {failures.REPLAY} for name in NAMES)
