"""A model of a site's own: the right share of a mixture where it is known, and fine-tuning that never harms."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.personal import at_prior, fine_tuned, fit_mixture, image_losses, site_prior
from fed_diffmic.training.stages import build_module, full_state
from tests.toy import install_toy_networks, toy_site, toy_spec


def simplex(rng, count, classes=3, sharpness=2.0):
    p = np.exp(sharpness * rng.normal(size=(count, classes)))
    return p / p.sum(axis=1, keepdims=True)


def drawn(rng, p):
    return (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_where_labels_come_from_a_mixture_its_share_is_found(share):
    rng = np.random.default_rng(7)
    own, shared = simplex(rng, 3000), simplex(rng, 3000)
    labels = drawn(rng, share * own + (1 - share) * shared)
    found = fit_mixture(own, shared, labels, np.arange(3000), seed=0)
    assert found.share == pytest.approx(share, abs=0.06)
    assert len(found.shares) == 5 and found.losses[2] <= min(found.losses[:2]) + 0.01


def test_a_useless_model_of_its_own_gets_no_say_and_a_useless_global_one_neither():
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 3, 60)
    right = 0.85 * np.eye(3)[truth] + 0.05
    noise = simplex(rng, 60)
    assert fit_mixture(noise, right, truth, np.arange(60), seed=0).share == 0.0
    assert fit_mixture(right, noise, truth, np.arange(60), seed=0).share == 1.0


def test_the_mixture_is_not_worse_than_the_better_of_the_two_on_other_images():
    """Over many small sites the cross-fitted share loses at most selection noise, and gains where both know."""
    rng = np.random.default_rng(9)
    gaps = []
    for trial in range(80):
        own, shared = simplex(rng, 560), simplex(rng, 560)
        w = rng.choice([0.0, 0.5, 1.0])
        labels = drawn(rng, w * own + (1 - w) * shared)
        found = fit_mixture(own[:60], shared[:60], labels[:60], np.arange(60), seed=trial)
        mixed = found.share * own + (1 - found.share) * shared
        losses = [image_losses(p[60:], labels[60:]).mean() for p in (mixed, own, shared)]
        gaps.append(losses[0] - min(losses[1:]))
    assert np.mean(gaps) < -0.05 and np.quantile(gaps, 0.9) < 0.03


def test_a_global_model_is_weighed_for_the_sites_own_mix_of_classes():
    """By hand, and where it matters: a good global model of another mix against the site's bare class frequencies."""
    p, half = np.array([[0.5, 0.5]]), np.array([0.5, 0.5])
    np.testing.assert_allclose(at_prior(p, half, np.array([0.9, 0.1]), several=False), [[0.9, 0.1]])
    np.testing.assert_allclose(at_prior(p, np.array([0.8, 0.2]), half, several=False), [[0.2, 0.8]])
    np.testing.assert_allclose(at_prior(p, half, np.array([0.9, 0.25]), several=True), [[0.9, 0.25]])
    rng = np.random.default_rng(11)
    before, after = np.array([0.2, 0.4, 0.4]), np.array([0.94, 0.03, 0.03])
    labels = rng.choice(3, 80, p=after)
    evidence = np.exp(1.5 * np.eye(3)[labels] + rng.normal(size=(80, 3)))
    shared = before * evidence / (before * evidence).sum(axis=1, keepdims=True)
    own = np.tile(after, (80, 1))
    assert fit_mixture(own, shared, labels, np.arange(80), seed=0).share > 0.7
    assert fit_mixture(own, at_prior(shared, before, after, several=False), labels, np.arange(80), seed=0).share < 0.3


def test_images_of_a_group_are_fitted_together_and_one_group_mixes_nothing():
    rng = np.random.default_rng(10)
    own, shared = simplex(rng, 40), simplex(rng, 40)
    labels = drawn(rng, 0.5 * own + 0.5 * shared)
    assert fit_mixture(own, shared, labels, np.zeros(40), seed=0).share in (0.0, 1.0)
    assert len(fit_mixture(own, shared, labels, np.arange(40) // 20, seed=0).shares) == 2
    with pytest.raises(ValueError, match="cannot mix"):
        fit_mixture(own[:0], shared[:0], labels[:0], np.zeros(0), seed=0)


def test_several_labels_count_each():
    p, labels = np.array([[0.9, 0.2]]), np.array([[1.0, 0.0]])
    assert image_losses(p, labels) == pytest.approx([-np.log(0.9) - np.log(0.8)])


@pytest.fixture
def toys(monkeypatch):
    install_toy_networks(monkeypatch.setattr)
    torch.manual_seed(0)
    spec = toy_spec(rounds=3, ema=0.0)
    return spec, full_state(build_module(spec, "plain"))


def faster(spec):
    return replace(spec, stages=replace(spec.stages, plain=replace(spec.stages.plain, lr=0.2)))


def loss(spec, state, data):
    module = build_module(spec, "plain")
    module.network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    from fed_diffmic.training.calibration import nll_sums

    return nll_sums(predict_scores(module, data.val), data.val.labels, site_prior(spec, data), spec.task).min()


def test_fine_tuning_learns_the_site_and_stops_at_its_best_validation(toys):
    spec, state = toys
    data = toy_site("a", 1, count=96)
    tuned = fine_tuned(faster(spec), "plain", state, data)
    assert tuned.passes >= 1 and tuned.fitted is not None and tuned.fitted.n == len(data.val)
    assert loss(spec, tuned.state, data) < loss(spec, state, data)
    np.testing.assert_array_equal(tuned.state["frozen.weight"], state["frozen.weight"])


def test_where_nothing_gets_better_the_global_model_stays_with_its_calibration(toys):
    spec, state = toys
    data = toy_site("a", 1, count=96)
    wrong = replace(data, train=replace(data.train, labels=(data.train.labels + 1) % 3))
    good = fine_tuned(faster(spec), "plain", state, data)
    kept = fine_tuned(spec, "plain", good.state, wrong)
    assert kept.passes == 0 and kept.fitted is None
    assert all(np.array_equal(kept.state[name], good.state[name]) for name in good.state)


def test_test_images_are_not_looked_at(toys):
    spec, state = toys
    data = toy_site("a", 1, count=48)

    class Unread:
        def __getattr__(self, name):
            raise AssertionError("a test image was read")

    unread = fine_tuned(spec, "plain", state, replace(data, test=Unread()))
    read = fine_tuned(spec, "plain", state, data)
    assert unread.passes == read.passes
    assert all(np.array_equal(unread.state[name], read.state[name]) for name in read.state)
