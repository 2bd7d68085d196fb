"""Scores and the metrics that leave a site."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.training import calibration, evaluation, stages
from fed_diffmic.training.evaluation import evaluate_scores, judged, predict_scores, score_images, start_draws
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import build_module, initial_state, load_state
from tests.toy import ToyNet, toy_site, toy_spec
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


def test_metrics_that_leave_a_site():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    scores = np.eye(3)[labels] * 3 + rng.normal(size=(30, 3))
    prior = np.full(3, 1 / 3)
    metrics = evaluate_scores(scores, labels, prior, "multiclass")
    assert metrics["num_examples"] == 30 and metrics["auroc_macro"] > 0.9 and metrics["loss"] < 1.0
    assert not any(name.startswith("nll/") for name in metrics)
    sums = evaluate_scores(scores, labels, prior, "multiclass", sums=True)
    table = [value for name, value in sums.items() if name.startswith("nll/")]
    assert min(table) / 30 == pytest.approx(metrics["loss"])
    assert evaluate_scores(scores[:0], labels[:0], prior, "multiclass") == {"num_examples": 0.0}


def test_a_figure_that_is_undefined_here_is_left_out():
    metrics = evaluate_scores(np.zeros((4, 3)), np.zeros(4, int), np.full(3, 1 / 3), "multiclass")
    assert "auroc_macro" not in metrics and "loss" in metrics


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
    found, _ = score_images(module, examples.images(np.arange(len(examples))), examples.keys)
    assert found.dtype == np.float64 and not module.training
    np.testing.assert_array_equal(found, expected)


def test_scores_are_those_of_evaluation_mode_whatever_the_module_did_before(monkeypatch):
    """With live batch norm: the running statistics, which stay as they are, and the images as training normalises."""
    monkeypatch.setattr(stages, "build_plain", lambda *_: ToyNet())
    spec = replace(toy_spec(), mean=(0.1, 0.4, 0.5), std=(0.5, 0.25, 0.5))
    module, train = build_module(spec, "plain"), toy_site("a", 1).train
    with torch.no_grad():
        module.network.norm.running_mean.fill_(0.3)
        module.network.norm.running_var.fill_(2.0)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    module.train()
    found = predict_scores(module, train)
    assert not module.training
    assert all(torch.equal(value, before[name]) for name, value in module.network.state_dict().items())
    images = train.images(np.arange(len(train))).float() / 255
    images = (images - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.no_grad():
        hidden = (module.network.frozen(images.flatten(1)) - 0.3) / (2.0 + 1e-5) ** 0.5
        wanted = module.network.head(hidden)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_each_image_is_sampled_from_its_own_start(monkeypatch):
    """In chunks of five: the draws go to the images, not to their places in the chunk."""

    class Echo(StageModule):
        sampled = True

        def scores(self, inputs, starts):
            return starts[:, 0, 0]

    monkeypatch.setattr(evaluation, "CHUNK", 5)
    spec, train = toy_spec(), toy_site("a", 1).train
    found = predict_scores(Echo(spec, "plain", ToyNet()), train)
    np.testing.assert_array_equal(found.astype(np.float32), start_draws(train.keys, spec)[:, 0, 0])


def test_decisions_follow_the_runs_rule():
    """A rare class is decided for by probability over prior, not by probability."""
    spec, val = toy_spec(), toy_site("a", 1).val.subset(np.arange(2))
    fitted = calibration.uncalibrated(np.array([0.9, 0.05, 0.05]), "multiclass")
    scores = np.log(np.array([[0.6, 0.3, 0.1], [0.97, 0.02, 0.01]]))
    decided = {}
    for rule in ("probability", "balanced"):
        scored = judged(scores, val, fitted, replace(spec, stages=replace(spec.stages, decision=rule)))
        decided[rule] = scored.decided.tolist()
        assert scored.labels.tolist() == val.labels.tolist() and scored.groups.tolist() == val.groups.tolist()
        np.testing.assert_allclose(scored.probabilities, calibration.probabilities(scores, fitted))
    assert decided == {"probability": [0, 0], "balanced": [1, 0]}


@pytest.mark.parametrize("stage", ["guidance", "plain"])
def test_nothing_is_drawn_for_a_stage_without_a_sampler(stage, monkeypatch):
    """The draws of 700 images took an eighth of a federation's seconds on features that are computed once."""

    def refused(*_):
        raise AssertionError("drawn")

    spec, train = tiny_spec(), tiny_site().train
    module = build_module(spec, stage)
    load_state(module.network, initial_state(spec, stage))
    before = predict_scores(module, train)
    monkeypatch.setattr(evaluation, "numpy_generator", refused)
    assert np.array_equal(predict_scores(module, train), before)
    score_images(module, train.images(np.arange(2)), train.keys[:2])
