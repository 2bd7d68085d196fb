"""Scores and the figures that leave a site."""

from dataclasses import replace

import numpy as np
import pytest

from fed_diffmic.training.evaluation import evaluate_scores, predict_scores, score_images, start_draws
from fed_diffmic.training.stages import build_module, initial_state, load_state
from tests.training.test_local import tiny_site, tiny_spec


def test_starts_depend_on_the_image_alone():
    keys = np.array([5, 9, 2**63 + 11], np.uint64)
    spec = tiny_spec()
    spec = replace(spec, model=replace(spec.model, sampling_starts=4))
    together = start_draws(keys, spec)
    assert together.shape == (3, 4, 2, 3) and together.dtype == np.float32
    assert np.array_equal(start_draws(keys[1:2], spec)[0], together[1])
    assert not np.array_equal(start_draws(keys, replace(spec, seed=spec.seed + 1)), together)
    assert (together >= 0).all() and (together < 1).all()
    assert len(np.unique(together)) == together.size


def test_a_shared_start_is_the_same_for_every_image():
    spec = tiny_spec()
    spec = replace(spec, model=replace(spec.model, sampling_starts=4, sampling_start="shared"))
    together = start_draws(np.array([5, 9], np.uint64), spec)
    assert np.array_equal(together[0], together[1]) and len(np.unique(together[0])) == together[0].size
    assert np.array_equal(start_draws(np.array([7], np.uint64), spec)[0], together[0])
    assert not np.array_equal(start_draws(np.array([5], np.uint64), replace(spec, seed=spec.seed + 1))[0], together[0])
    assert start_draws(np.array([], np.uint64), spec).shape == (0, 4, 2, 3)


@pytest.mark.parametrize("stage", ["guidance", "diffusion", "plain"])
def test_scores_do_not_depend_on_what_is_predicted_with_them(stage):
    spec = tiny_spec()
    module = build_module(spec, stage)
    guidance = initial_state(spec, "guidance") if stage == "diffusion" else None
    load_state(module.network, initial_state(spec, stage, guidance))
    train = tiny_site().train
    all_scores = predict_scores(module, train)
    some = predict_scores(module, train.subset(np.array([7, 2])))
    assert all_scores.shape == (12, 3)
    np.testing.assert_allclose(some, all_scores[[7, 2]], atol=1e-5)
    assert predict_scores(module, train.subset(np.array([], int))).shape == (0, 3)


def test_figures_that_leave_a_site():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    scores = np.eye(3)[labels] * 3 + rng.normal(size=(30, 3))
    prior = np.full(3, 1 / 3)
    figures = evaluate_scores(scores, labels, prior, "multiclass")
    assert figures["num_examples"] == 30 and figures["auroc_macro"] > 0.9 and figures["loss"] < 1.0
    assert not any(name.startswith("nll/") for name in figures)
    sums = evaluate_scores(scores, labels, prior, "multiclass", sums=True)
    table = [value for name, value in sums.items() if name.startswith("nll/")]
    assert min(table) / 30 == pytest.approx(figures["loss"])
    assert evaluate_scores(scores[:0], labels[:0], prior, "multiclass") == {"num_examples": 0.0}


def test_a_figure_that_is_undefined_here_is_left_out():
    figures = evaluate_scores(np.zeros((4, 3)), np.zeros(4, int), np.full(3, 1 / 3), "multiclass")
    assert "auroc_macro" not in figures and "loss" in figures


@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_images_without_labels_have_the_scores_of_those_with(stage):
    """And are predicted in evaluation mode, whatever was done with the module before."""
    spec, site = tiny_spec(), tiny_site()
    module = build_module(spec, stage)
    guidance = initial_state(spec, "guidance")
    load_state(module.network, initial_state(spec, stage, guidance), stage)
    examples = site.train
    expected = predict_scores(module, examples)
    module.train()
    found = score_images(module, examples.images(np.arange(len(examples))), examples.keys)
    assert found.dtype == np.float64 and not module.training
    np.testing.assert_array_equal(found, expected)
