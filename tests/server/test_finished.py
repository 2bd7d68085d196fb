"""What the sites are asked of a finished stage: sums for its calibration, metrics on test images for the matrix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from fed_diffmic.exchange import failures
from fed_diffmic.release.final import load_final
from fed_diffmic.training import calibration, pooled
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.matrix import cell_from, matrix_cell
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.stages import build_module, load_state
from server.sites import ASSESS
from simulations.grid import InProcessGrid
from tests import site_rules, toy

ALL_BUT_TEST = ("num_examples", "images", "class_counts", "loss", "steps", "seconds", "auroc_macro", "nll/*")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_the_calibration_equals_one_fitted_on_the_union(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path)
    spec = toy.toy_spec(lr=0.2, rounds=3)
    final = toy.short_run(tmp_path, grid, spec)
    module = build_module(spec, "guidance")
    load_state(module.network, final.states["guidance"])
    scores = np.concatenate([predict_scores(module, source.sites[name].val) for name in ("a", "b")])
    labels = np.concatenate([source.sites[name].val.labels for name in ("a", "b")])
    prior = calibration.class_prior(np.array([8, 8, 8]), 24, "multiclass")
    wanted = calibration.choose(calibration.nll_sums(scores, labels, prior, "multiclass"), 12, prior, "multiclass")
    assert final.calibration["guidance"] == wanted


def test_the_matrix_holds_what_the_sites_let_out(tmp_path: Path) -> None:
    given = {"a": site_rules.rules(tmp_path, "a"), "b": site_rules.rules(tmp_path, "b", metrics=list(ALL_BUT_TEST))}
    grid, source = site_rules.ruled_grid(tmp_path, given)
    events, spec = toy.Events([]), toy.toy_spec(lr=0.2, rounds=3)
    final = toy.short_run(tmp_path, grid, spec, events, test_s=60.0)
    module, fitted, test = build_module(spec, "guidance"), final.calibration["guidance"], source.sites["a"].test
    load_state(module.network, final.states["guidance"])
    probabilities = calibration.probabilities(predict_scores(module, test), fitted)
    decided = calibration.decide(probabilities, fitted, spec.stages.decision)
    scored = Scored(probabilities, decided, test.labels, test.groups, spec.task)
    sure = final.sureness["guidance"]
    cell = matrix_cell(scored, spec.classes, bootstrap=1000, seed=spec.seed, name="a", sureness=sure)
    counts = pooled.points_from(pooled.site_points(scored, spec.num_classes), spec.classes)
    assert set(counts) == set(spec.classes), "what the operating points over all sites are made of"
    told = {**cell, "complete": True, "points": counts}
    assert final.matrix == {"guidance": {"a": told, "b": cell_from({}, spec.classes)}}
    (assessed,) = events.of("assessed")
    assert assessed["sites"] == ["a"] and assessed["missing"] == {"b": failures.FAILURES[failures.POLICY_METRICS]}
    assert load_final(tmp_path).matrix == final.matrix


def test_nobody_is_asked_for_test_images_in_a_simulation(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    events = toy.Events([])
    assert toy.short_run(tmp_path, grid, events=events).matrix == {}
    assert events.of("assessed") == []


def test_a_site_that_is_gone_at_the_end_costs_its_cell_and_no_more(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)

    class Leaves(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent = [m for m in messages if not (m.metadata.message_type == ASSESS and m.metadata.dst_node_id == leaver)]
            return super().push_messages(sent)

    grid.__class__, leaver = Leaves, sorted(grid.get_node_ids())[1]
    events = toy.Events([])
    final = toy.short_run(tmp_path, grid, events=events, stages=["guidance", "plain"], test_s=60.0)
    assert list(final.matrix) == ["plain", "guidance"]  # the model first
    for row in final.matrix.values():
        assert sorted(cell["n"] for cell in row.values()) == [0, 6]
    first, second = (event["missing"] for event in events.of("assessed"))
    assert len(first) == 1 and second == {}  # nobody waits twice for a site that is gone
