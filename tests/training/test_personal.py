"""A model of a site's own: the right share of a mixture where it is known, and fine-tuning that never harms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.simulation import ModelConfig, StageConfig, StagesConfig
from fed_diffmic.training import personal
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.personal import (
    Personal,
    at_prior,
    fine_tuned,
    fit_mixture,
    image_losses,
    mean_share,
    site_prior,
    tune,
)
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
    assert fit_mixture(noise, right, truth, np.arange(60), seed=0).share < 0.05
    assert fit_mixture(right, noise, truth, np.arange(60), seed=0).share > 0.95


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (3, 4), (7, 30), (0, 0)])
def test_two_models_that_are_sure_are_weighed_by_the_rule_of_succession(hits, count):
    """Laplace's ``(k + 1) / (n + 2)``: the mean of the beta distribution that the posterior is here."""
    right = np.arange(count) < hits
    w = np.linspace(0, 1, 2001)[:, None]
    losses = -np.log(np.clip(np.where(right, w, 1 - w), 1e-12, None))
    assert mean_share(losses, np.arange(count)) == pytest.approx((hits + 1) / (count + 2), abs=1e-4)


def test_images_of_one_group_count_as_one_image():
    rng = np.random.default_rng(12)
    grid = np.linspace(0, 1, 201)[:, None]
    once = -np.log(grid * rng.random(9) + (1 - grid) * rng.random(9))
    often = np.repeat(once, np.arange(1, 10), axis=1)
    groups = np.repeat(np.arange(9), np.arange(1, 10))
    assert mean_share(often, groups) == pytest.approx(mean_share(once, np.arange(9)), abs=1e-12)
    assert abs(mean_share(often, np.arange(45)) - mean_share(once, np.arange(9))) > 0.01


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.5, 2.0, 6.0]))
def test_image_after_image_it_is_never_far_behind_the_best_share_in_hindsight(seed, count, sharpness):
    """Cover and Ordentlich 1996, theorem 1: at most ``log(n + 1)`` nats in all, whatever the labels are."""
    rng = np.random.default_rng(seed)
    own, shared = simplex(rng, count, sharpness=sharpness), simplex(rng, count, sharpness=sharpness)
    labels = rng.integers(0, 3, count)
    losses = np.stack([image_losses(w * own + (1 - w) * shared, labels) for w in np.linspace(0, 1, 401)])
    behind = -losses.sum(axis=1).min()
    for i in range(count):
        share = mean_share(losses[:, :i], np.arange(i))
        behind += image_losses(share * own[[i]] + (1 - share) * shared[[i]], labels[[i]]).item()
    assert behind <= np.log(count + 1) + 0.01


def test_the_mixture_is_not_worse_than_the_better_of_the_two_on_other_images():
    """Over many small sites the share loses at most little, and gains where both know."""
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


def test_an_own_model_that_was_chosen_on_the_same_images_does_not_win_by_that():
    """The best of twenty level models on 33 images, against one that is as good: near the middle, not all its own."""
    rng = np.random.default_rng(13)
    worse, shares = [], []
    for trial in range(40):
        truth = simplex(rng, 533, classes=5)
        labels = drawn(rng, truth)

        def level(truth=truth):
            p = truth * np.exp(rng.normal(size=truth.shape))
            return p / p.sum(axis=1, keepdims=True)

        tried = [level() for _ in range(20)]
        own = min(tried, key=lambda p: image_losses(p[:33], labels[:33]).sum())
        shared = level()
        found = fit_mixture(own[:33], shared[:33], labels[:33], np.arange(33), seed=trial)
        mixed = found.share * own + (1 - found.share) * shared
        losses = [image_losses(p[33:], labels[33:]).mean() for p in (mixed, (own + shared) / 2)]
        worse.append(losses[0] - losses[1])
        shares.append(found.share)
    assert max(shares) < 0.95 and np.mean(worse) < 0.025


def test_images_of_a_group_are_dealt_together_and_one_group_says_little():
    rng = np.random.default_rng(10)
    own, shared = simplex(rng, 40), simplex(rng, 40)
    labels = drawn(rng, 0.5 * own + 0.5 * shared)
    one = fit_mixture(own, shared, labels, np.zeros(40), seed=0)
    assert one.shares == (0.5,) and 0.3 < one.share < 0.7
    assert one.losses[2] == pytest.approx(image_losses((own + shared) / 2, labels).mean())
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


def test_what_is_to_be_beaten_stays_where_neither_the_start_nor_a_pass_is_better(toys):
    """A start that got another network inside may be worse than the model it was made of; or better, untrained."""
    spec, start = toys
    data = toy_site("a", 1, count=96)
    wrong = replace(data, train=replace(data.train, labels=(data.train.labels + 1) % 3))
    good = fine_tuned(faster(spec), "plain", start, data).state
    kept = fine_tuned(spec, "plain", start, wrong, to_beat=good)
    assert kept.passes == 0 and kept.fitted is None
    assert all(np.array_equal(kept.state[name], good[name]) for name in good)
    won = fine_tuned(spec, "plain", good, wrong, to_beat=start)
    assert won.passes == 0 and won.fitted is not None and won.fitted.n == len(data.val)
    assert all(np.array_equal(won.state[name], good[name]) for name in good)


def test_a_model_of_two_stages_is_the_global_one_where_its_last_is_not_better(monkeypatch):
    """Not a mixture of both: a better guidance network inside a head that was not trained with it, badly calibrated."""
    asked = {}

    def found(spec, stage, state, data, *, device, heads_alone, to_beat):
        asked[stage] = (state, to_beat)
        if stage == "guidance":
            return Personal({"w": np.ones(1)}, "its own", 2)
        return Personal(to_beat, None, 0)

    monkeypatch.setattr(personal, "fine_tuned", found)
    states = {"guidance": {"w": np.zeros(1)}, "diffusion": {"guidance.w": np.zeros(1), "head": np.zeros(1)}}
    made = tune(toy_spec(), states, {"guidance": "g", "diffusion": "d"}, toy_site("a", 1))
    assert asked["diffusion"][0]["guidance.w"] == 1 and asked["diffusion"][1]["guidance.w"] == 0
    assert made.passes == 0 and made.fitted == {"guidance": "g", "diffusion": "d"} and made.states == states
    monkeypatch.setattr(personal, "fine_tuned", lambda *a, **k: replace(found(*a, **k), fitted="its own", passes=1))
    made = tune(toy_spec(), states, {"guidance": "g", "diffusion": "d"}, toy_site("a", 1))
    assert made.passes == 2 and made.states["guidance"]["w"] == 1 and made.fitted["diffusion"] == "its own"


@pytest.mark.parametrize("stage", ["plain", "guidance"])
def test_a_head_alone_leaves_nothing_of_the_encoders_changed(stage):
    """Nor statistics of a batch norm, which no gradient moves."""
    cfg = StageConfig(rounds=1, batch_size=8, lr=0.3, augment=False)
    encoder = dict.fromkeys(("guidance_backbone", "local_backbone"), "test_efficientnet")
    model = ModelConfig(
        image_side=32, regions=2, crop=16, latent=16, attention=8, feature_stride=16, encoder_norm="train", **encoder
    )
    spec = replace(toy_spec(), model=model, stages=StagesConfig(cfg, cfg, cfg))
    state = full_state(build_module(spec, stage))
    found = fine_tuned(spec, stage, state, toy_site("a", 1, count=48, side=32), heads_alone=True)
    changed = [name for name, value in found.state.items() if value.tobytes() != state[name].tobytes()]
    assert found.passes and changed and not [name for name in changed if "encoder" in name]
    assert any("running_mean" in name for name in state)
