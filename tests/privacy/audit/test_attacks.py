"""The attacks on the real update: they see what is there, stay below a true claim and refute a false one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.deadline import OutOfTimeError, time_bound
from fed_diffmic.errors import ConfigError
from fed_diffmic.privacy import dp_sgd, per_sample
from fed_diffmic.privacy.audit import subject as subjects
from fed_diffmic.privacy.audit.attacks import (
    _least_squares,
    _likelihood_ratio,
    computed_again,
    log_ratio,
    made_up_gradients,
    real_pictures,
)
from fed_diffmic.privacy.audit.bound import assess
from fed_diffmic.privacy.audit.subject import Observer, make_subject, pictures, with_labels
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.training.stage import StageModule

DELTA = 1e-5
SMALL = ["model.image_side=32", "model.regions=2"]


@pytest.fixture(autouse=True)
def small_pictures(request, monkeypatch):
    """Pictures of a quarter of the size: made-up gradients and equal bits do not depend on them."""
    if not request.node.get_closest_marker("slow"):
        compose = subjects.compose
        monkeypatch.setattr(subjects, "compose", lambda file, given: compose(file, [*given, *SMALL]))


def settings(**changes):
    return PrivacyConfig(**{"name": "dp_sgd", "unit": "image", "physical_batch": 32, **changes})


def subject(*, target=2.0, stage="guidance", ordinary=3, draws=2, **changes):
    return make_subject(settings(**changes), stage=stage, target=target, ordinary=ordinary, draws=draws)


def quiet(_):
    """Nobody is told."""


def gradient_bound(what, runs=8, canaries=64):
    trials = made_up_gradients(what, runs, canaries, 0, quiet)
    return assess(trials.scores, trials.included, DELTA)


@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("stage", ["guidance", "diffusion", "plain"])
def test_a_canary_moves_its_own_coordinate_by_the_clipping_bound(monkeypatch, unit, stage):
    monkeypatch.setattr(Randomness, "normal", lambda self, count, device: torch.zeros(count, dtype=torch.float64))
    monkeypatch.setattr(Randomness, "included", lambda self, count, rate: np.arange(count))
    what = subject(unit=unit, stage=stage, max_grad_norm=0.3)
    observer = Observer(what)
    module, name, places = observer.canaries(4, np.random.default_rng(0))
    examples = pictures(what.spec, 4, what.images_each)
    moved = observer.round(module, with_labels(examples, range(4), range(4, 8)), 1)
    assert moved[name].ravel()[places] == pytest.approx(np.ones(4), rel=1e-3)
    moved[name].ravel()[places] = 0
    assert max(np.abs(value).max() for value in moved.values()) < 1e-3


@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_canaries_leave_the_images_alone(stage):
    """An image's loss is what it is without them, under the same draws."""
    what = subject(stage=stage)
    observer = Observer(what)
    module, _, _ = observer.canaries(2, np.random.default_rng(0))
    examples = pictures(what.spec, 3, 1)
    batch = dp_sgd.Source(observer.module, examples, what.privacy, "a", 1, "cpu", None)
    units = batch.units([np.array([i]) for i in range(3)], [torch.Generator().manual_seed(i) for i in range(3)])
    for name, value in per_sample.unit_gradients(observer.module, units).items():
        assert torch.equal(value, per_sample.unit_gradients(module, units)[name]), name


def test_the_noise_is_planned_for_the_target_and_the_claim_is_the_ledgers():
    what = subject(target=3.0)
    assert 2.95 <= what.claim <= 3.0
    assert what.plan.steps == 1 and what.plan.sample_rate == pytest.approx(0.75)
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        subject(delta=0.5)


def test_the_log_ratio_is_that_of_the_two_densities():
    x, sigma, rate = 0.7, 1.3, 0.4
    inside = rate * np.exp(-((x - 1) ** 2) / (2 * sigma**2)) + (1 - rate) * np.exp(-(x**2) / (2 * sigma**2))
    expected = np.log(inside / np.exp(-(x**2) / (2 * sigma**2)))
    assert log_ratio(np.array(x), sigma**-2, rate) == pytest.approx(expected)
    assert log_ratio(np.array(x), sigma**-2, 1.0) == pytest.approx((x - 0.5) / sigma**2)


def test_least_squares_finds_who_took_part():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, 40))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    there = np.array([1, 0, 1, 1, 0, 0.0])
    estimate, precision = _least_squares(gradients, there @ gradients, 1e-6, np.full(6, 0.5))
    assert estimate == pytest.approx(there, abs=1e-3)
    # Without the others the precision would be one over the noise's variance; they can only lower it.
    assert (precision <= 1e6 * (1 + 1e-9)).all() and (precision > 1e5).all()


def test_the_likelihood_ratio_tells_two_distributions_apart():
    rng = np.random.default_rng(0)
    included = rng.random((400, 2)) < 0.5
    losses = rng.normal(size=(400, 2)) - 3 * included * [1, 0]
    scores = _likelihood_ratio(losses, included)[200:]
    truth = included[200:]
    assert ((scores[:, 0] > 0) == truth[:, 0]).mean() > 0.9
    assert ((scores[:, 1] > 0) == truth[:, 1]).mean() < 0.65


def test_small_a_true_claim_is_not_refuted():
    what = subject(test_seed=1)  # repeatable; only the attack that computes again knows the seed
    assert 0 <= gradient_bound(what).bound < what.claim


def test_fault_no_noise(monkeypatch):
    monkeypatch.setattr(Randomness, "normal", lambda self, count, device: torch.zeros(count, dtype=torch.float64))
    what = subject(test_seed=1)
    assert gradient_bound(what).bound > what.claim


def test_fault_no_clipping(monkeypatch):
    monkeypatch.setattr(per_sample, "clip_factors", lambda size, bound: torch.ones_like(size))
    what = subject(test_seed=1)
    assert gradient_bound(what).bound > what.claim


def pieces_clipped_alone(split):
    """``summed`` with the fault: each piece of a unit is clipped and added as if it were a unit."""

    def summed(module, chunks, bound):
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in per_sample.trained(module).items()}
        for units in chunks:
            for piece in split(units):
                for name, value in per_sample.clipped_sum(per_sample.unit_gradients(module, piece), bound).items():
                    total[name] += value
        return total

    return summed


@pytest.mark.slow
def test_fault_each_noise_draw_clipped_by_itself(monkeypatch):
    def draws(units):
        return (
            replace(units, draws=tuple(d[:, :, k : k + 1] for d in units.draws)) for k in range(units.draws[0].shape[2])
        )

    monkeypatch.setattr(dp_sgd, "summed", pieces_clipped_alone(draws))
    what = subject(stage="diffusion", draws=8, target=1.0, test_seed=1)
    assert gradient_bound(what, 6, 64).bound > what.claim


@pytest.mark.slow
def test_fault_each_image_of_a_patient_clipped_by_itself(monkeypatch):
    def images(units):
        return (replace(units, mask=units.mask * (torch.arange(3) == k)) for k in range(units.mask.shape[1]))

    monkeypatch.setattr(dp_sgd, "summed", pieces_clipped_alone(images))
    what = subject(unit="patient", test_seed=1)
    assert gradient_bound(what, runs=24).bound > what.claim


def test_fault_noise_from_a_known_seed():
    what = subject(test_seed=7, target=0.5)  # eight right answers of eight refute it
    trials = computed_again(what, 16, 0, quiet)
    assert trials.said.all()
    assert assess(trials.scores, trials.included, DELTA, said=trials.said).bound > what.claim


def test_fault_noise_from_the_processs_generator(monkeypatch):
    monkeypatch.setattr(
        Randomness, "normal", lambda self, count, device: torch.from_numpy(np.random.normal(size=count))
    )
    monkeypatch.setattr(Randomness, "uniform", lambda self, count: torch.rand(count).double().numpy())
    monkeypatch.setattr(Randomness, "seed", lambda self: 5)
    kept = torch.get_rng_state()
    trials = computed_again(subject(), 4, 0, quiet)
    assert trials.said.all() and ((trials.scores > 0) == trials.included).all()
    assert torch.equal(torch.get_rng_state(), kept)


def test_noise_of_the_operating_system_cannot_be_computed_again():
    assert not computed_again(subject(), 2, 0, quiet).said.any()


def test_pictures_without_noise_are_found_by_their_gradients(monkeypatch):
    monkeypatch.setattr(Randomness, "normal", lambda self, count, device: torch.zeros(count, dtype=torch.float64))
    monkeypatch.setattr(Randomness, "included", lambda self, count, rate: np.arange(count))
    steps, loss = real_pictures(subject(test_seed=1), 6, 4, 0, quiet)
    assert roc_auc_score(steps.included.ravel(), steps.scores.ravel()) > 0.9
    assert loss.scores.shape == (6, 4) and np.isfinite(loss.scores).all()


def test_the_callers_bound_on_time_holds():
    what = subject()
    for attack in (lambda: gradient_bound(what), lambda: computed_again(what, 2, 0, quiet)):
        with pytest.raises(OutOfTimeError), time_bound(-1.0):
            attack()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_made_up_gradients_come_within_a_third_of_a_true_claim():
    what = make_subject(settings(test_seed=0), target=4.0)
    result = gradient_bound(what, 160, 128)
    assert what.claim / 3 < result.bound < what.claim


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_no_attack_refutes_a_true_claim(stage, unit):
    what = subject(stage=stage, unit=unit, test_seed=1)
    assert gradient_bound(what, 24).bound < what.claim
    for trials in real_pictures(what, 40, 6, 0, quiet):
        assert assess(trials.scores, trials.included, DELTA).bound < what.claim


def test_the_stage_with_canaries_has_the_networks_names_once():
    observer = Observer(subject())
    module, _, _ = observer.canaries(2, np.random.default_rng(0))
    assert isinstance(module, StageModule)
    assert list(dict(module.named_parameters())) == list(dict(observer.module.named_parameters()))
