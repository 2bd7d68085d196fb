"""Prediction sets over real messages: they equal those of pooled scores, and what does not come does no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import sureness
from client.module import BASE
from client.requests import TASK
from client.site import Site
from client.sureness import conform
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.study import contradiction, make_study
from fed_diffmic.files import read_json, tensors_digest, write_json
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.training import conformal, uncertainty
from fed_diffmic.training.calibration import decide, probabilities, uncalibrated
from fed_diffmic.training.conformal import CELLS
from fed_diffmic.training.coverage import KINDS, coverage
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.stages import build_module, exchanged, initial_state, load_state
from server.checkpoints import CheckpointStore
from server.hooks import Bounds, Hooks
from simulations.grid import InProcessGrid
from tests import site_rules, toy


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def federate(
    folder: Path, grid: InProcessGrid, events: Any = None, names: tuple[str, ...] = ("a", "b"), **more: Any
) -> FinalModel:
    spec = more.pop("spec", None) or toy.toy_spec(lr=0.2, rounds=2)
    given = {"stages": ["guidance"], "sites": list(names), "poll_s": 0.001, "join_s": 60.0, **more}
    return toy.federate(grid, spec, CheckpointStore(folder), events or toy.Events([]), **given)


def larger(count: int = 160) -> toy.ToySource:
    return toy.ToySource({name: toy.toy_site(name, seed, count) for seed, name in enumerate("ab", start=1)})


def pooled(final: FinalModel, source: toy.ToySource) -> tuple[np.ndarray, np.ndarray]:
    module = build_module(final.spec, "guidance")
    load_state(module.network, final.states["guidance"])
    parts = [source.sites[name].val for name in ("a", "b")]
    scores = np.concatenate([predict_scores(module, part) for part in parts])
    return probabilities(scores, final.calibration["guidance"]), np.concatenate([part.labels for part in parts])


def test_thresholds_and_the_test_of_uncertainty_are_those_of_all_images_together(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path, source=larger())
    events = toy.Events([])
    final = federate(tmp_path, grid, events)
    sure = final.sureness["guidance"]
    p, labels = pooled(final, source)
    assert (sure.n, sure.sites, sure.silent) == (len(p), ("a", "b"), ())
    for method in conformal.METHODS:
        for level in conformal.LEVELS:
            wanted = conformal.fit([conformal.counts(p, labels, "multiclass", method)], method, level)
            assert sure.rule(method, level) == wanted
    assert 0 < sure.rule("lac", 0.9).overall[0] < CELLS  # type: ignore[union-attr]
    bad = uncertainty.wrong(decide(p, final.calibration["guidance"], "probability"), labels, "multiclass")
    cells = conformal.cells(uncertainty.entropy(p, "multiclass"))
    table = np.stack([np.bincount(cells[bad == k], minlength=CELLS + 1) for k in (False, True)])
    assert sure.measures == (uncertainty.measured("entropy", table),)
    (said,) = events.of("conformed")
    assert said["images"] == len(p) and said["sites"] == ["a", "b"]
    assert load_final(tmp_path).sureness == final.sureness


def test_few_images_give_sets_of_everything_and_no_uncertainty(tmp_path: Path) -> None:
    """12 validation images: none of them can promise 95 %."""
    grid, _ = toy.toy_grid(tmp_path)
    sure = federate(tmp_path, grid).sureness["guidance"]
    assert sure.n == 12
    assert sure.rule("lac", 0.95).overall == (CELLS,) and sure.rule("lac", 0.9).overall[0] < CELLS  # type: ignore[union-attr]
    assert sure.rule("lac", 0.9).by_state == ((CELLS,) * 3,)  # type: ignore[union-attr]
    assert sure.offered == ()


def test_a_site_that_tells_nothing_is_named_and_the_run_ends_all_the_same(tmp_path: Path) -> None:
    metrics = ["num_examples", "images", "class_counts", "loss", "steps", "seconds", "auroc_macro", "nll/*", "test/*"]
    given = {"a": site_rules.rules(tmp_path, "a"), "b": site_rules.rules(tmp_path, "b", metrics=metrics)}
    grid, _ = site_rules.ruled_grid(tmp_path, given)
    events = toy.Events([])
    final = federate(tmp_path, grid, events, test_s=60.0)
    sure = final.sureness["guidance"]
    assert (sure.sites, sure.silent, sure.n) == (("a",), ("b",), 6)
    (said,) = events.of("conformed")
    assert said["missing"] == {"b": failures.FAILURES[failures.POLICY_METRICS]}
    assert final.matrix["guidance"]["b"]["coverage"].keys() == set(KINDS), "its own test images are another matter"


def test_what_leaves_a_site_counts_no_few_images(tmp_path: Path) -> None:
    source = larger()
    given = {name: site_rules.rules(tmp_path, name, min_count=10) for name in ("a", "b")}
    grid, ruled = site_rules.ruled_grid(tmp_path, given)
    ruled.sites.update(source.sites)
    final = federate(tmp_path, grid)
    left = metrics_of(tmp_path / "a.audit.jsonl")
    counts = {name: n for name, n in left.items() if name.startswith(("sets/lac", "unsure/"))}
    assert counts and min(counts.values()) >= 10
    assert sum(n for name, n in counts.items() if name.startswith("sets/lac")) == len(source.sites["a"].val)
    p, labels = pooled(final, source)
    exact = conformal.fit([conformal.counts(p, labels, "multiclass", "lac")], "lac", 0.9)
    assert final.sureness["guidance"].rule("lac", 0.9).overall >= exact.overall  # type: ignore[union-attr]


def metrics_of(log: Path) -> dict[str, float]:
    """The metrics of the last payload of a site's audit log that counts anything by cell."""
    found = {}
    for line in log.read_text().splitlines():
        text = json.dumps(json.loads(line))
        if "sets/lac" in text:
            found = _metrics(json.loads(line))
    return found


def _metrics(value: Any) -> dict[str, float]:
    if isinstance(value, dict):
        if "figures" in value:
            return dict(value["figures"])
        return next((found for inner in value.values() if (found := _metrics(inner))), {})
    return {}


@pytest.mark.parametrize(
    "said", [{"sets/lac/0/0/5": 3.0}, {"sets/lac/0/0/5": 6.0}, {"other/1": 1.0}, {"sets/lac/9/0/5": 6.0}]
)
def test_counts_that_cannot_be_are_refused(
    tmp_path: Path, said: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than the images, another method without any, a name that is none, a question that is not there."""

    real = sureness.site_counts
    monkeypatch.setattr(
        sureness, "site_counts", lambda *args: real(*args) if "a" in str(len(calls)) else _lie(real(*args), said, calls)
    )
    calls: list[int] = []
    grid, _ = toy.toy_grid(tmp_path)
    sure = federate(tmp_path, grid).sureness["guidance"]
    assert sure.n == 0 and sure.rules == () and sure.silent == ("a", "b")


def _lie(_: dict[str, float], said: dict[str, float], calls: list[int]) -> dict[str, float]:
    calls.append(1)
    return {"num_examples": 6.0, "sets/squares": 6.0, **said}


def test_a_site_that_protects_its_validation_images_tells_nothing(tmp_path: Path) -> None:

    spec = toy.toy_spec()
    whole = initial_state(spec, "guidance")
    kinds = exchanged(build_module(spec, "guidance"))
    base = {name: value for name, value in whole.items() if name not in kinds}
    weights = {name: whole[name] for name in kinds}
    fitted = uncalibrated(np.full(3, 1 / 3), "multiclass")
    header = dict.fromkeys(TASK, "") | {
        "run": "toy", "arm": "federated", "stage": "guidance", "round": 0, "site": "a", "state": "", "guidance": "",
        "base": tensors_digest(base), "weights": tensors_digest(weights), "calibration": fitted.to_json(),
    }  # fmt: skip
    request = Payload("conform", header, {**{BASE + n: v for n, v in base.items()}, **weights})
    site = Site("a", tmp_path / "a", toy.toy_site("a", 1), "cpu")
    assert conform(site, spec, request).metrics["num_examples"] == 6.0
    private = PrivacyConfig(name="dp_sgd", stages=["guidance"], nominal_units=12, weight=3)
    assert conform(replace(site, privacy=private), spec, request).metrics == {}
    listed = replace(private, validation="listed")
    assert conform(replace(site, privacy=listed), spec, request).metrics["num_examples"] == 6.0
    other = {**fitted.to_json(), "prior": [0.5, 0.5]}
    with pytest.raises(failures.SiteError):
        conform(site, spec, Payload("conform", {**header, "calibration": other}, request.tensors))


def test_coverage_on_test_images_leaves_with_the_other_metrics(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path, source=larger())
    final = federate(tmp_path, grid, test_s=60.0)
    module = build_module(final.spec, "guidance")
    load_state(module.network, final.states["guidance"])
    test, fitted = source.sites["b"].test, final.calibration["guidance"]
    p = probabilities(predict_scores(module, test), fitted)
    scored = Scored(p, decide(p, fitted, "probability"), test.labels, test.groups, "multiclass")
    wanted = coverage(scored, final.sureness["guidance"], final.spec.classes)
    assert final.matrix["guidance"]["b"]["coverage"] == wanted and wanted["lac"]["size"] > 0


def test_where_one_site_is_withstood_thresholds_are_the_largest_without_any_one(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    source = toy.ToySource({name: toy.toy_site(name, seed, 160) for seed, name in enumerate(names, start=1)})
    grid, _ = toy.toy_grid(tmp_path, names, source=source)
    final = federate(tmp_path, grid, names=names, hooks=Hooks(bounds=Bounds(max_share=0.5)))
    module = build_module(final.spec, "guidance")
    load_state(module.network, final.states["guidance"])
    tables = []
    for name in names:
        part = source.sites[name].val
        p = probabilities(predict_scores(module, part), final.calibration["guidance"])
        tables.append(conformal.counts(p, part.labels, "multiclass", "lac"))
    some = [conformal.fit(tables[:k] + tables[k + 1 :], "lac", 0.9).overall[0] for k in range(3)]
    found = final.sureness["guidance"].rule("lac", 0.9)
    assert found is not None and found.overall[0] == max(some)


def test_a_model_of_an_earlier_version_goes_on_working_and_one_that_was_changed_does_not(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    federate(tmp_path, grid)
    path = tmp_path / "final" / "model.json"
    value = read_json(path)
    sure = value.pop("sureness")
    write_json(path, value)
    assert load_final(tmp_path).sureness == {}
    sure["guidance"]["rules"][0]["overall"] = [CELLS + 1]
    write_json(path, {**value, "sureness": sure})
    with pytest.raises(ModelFileError, match="uncertainty"):
        load_final(tmp_path)


def test_a_study_lets_only_its_last_stage_be_asked_for_sets() -> None:
    spec = toy.toy_spec()
    study = make_study(spec, stages=["guidance", "diffusion"], test=False, sites=None, initial={}, code={})
    header = {"spec": study.spec_text, "round": 0, "base": ""}
    said = {s: contradiction(study, "conform", Payload("conform", {**header, "stage": s})) for s in study.stages}
    assert "last stage" in said["guidance"] and said["diffusion"] == ""
