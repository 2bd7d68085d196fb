"""The private centring round: the same mechanism as a training round, with features in the place of gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.privacy.dp_sgd import Plan, private_update
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.training.centring import find_centre
from fed_diffmic.training.stages import centres, exchanged, full_state, load_state
from fed_diffmic.training.update import LocalRound
from tests.privacy.models import private_spec, random_examples, stage_module

PRIVACY = PrivacyConfig(name="dp_sgd", unit="image", noise_multiplier=1.0, delta=1e-3, test_seed=5, max_grad_norm=0.25)
PATIENTS = ["a", "a", "a", "b", "c", "c", "d", "e", "e", "f"]


@pytest.fixture(scope="module", params=["guidance", "plain"])
def start(request):
    spec = private_spec("tiny", encoders="frozen", augment=False)
    spec = replace(spec, model=replace(spec.model, features="centred"))
    module = stage_module(spec, request.param)
    return spec, module, full_state(module)


def update(start, privacy, plan, examples=None, round_index=1):
    spec, module, state = start
    load_state(module.network, state)
    examples = random_examples(spec.model.image_side, 10, groups=PATIENTS) if examples is None else examples
    algorithm = Algorithm(StrategyConfig())
    at = LocalRound("s", round_index)
    return private_update(module, examples, algorithm, at, privacy=privacy, plan=plan)


def vector(start, result):
    return np.concatenate([result.tensors[name].astype(np.float64) for name in centres(start[1])])


def plan(rate=1.0, steps=1, sigma=0.0, batch=10.0):
    return Plan(10, rate, steps, sigma, batch)


def test_without_noise_it_is_the_mean_that_a_site_without_privacy_finds(start):
    spec, module, state = start
    result = update(start, PRIVACY, plan(steps=2))
    load_state(module.network, state)
    find_centre(module, random_examples(spec.model.image_side, 10), "cpu")
    twin = full_state(module)
    for name in centres(module):
        np.testing.assert_allclose(result.tensors[name], twin[name], rtol=2e-5, atol=1e-6)  # the clipping rounds down
    for name in set(result.tensors) - set(centres(module)):
        assert np.array_equal(result.tensors[name], state[name])
    assert result.metrics == {"steps": 2.0} and result.num_examples == 1


def test_a_patient_counts_once_with_the_mean_of_their_images(start):
    examples = random_examples(start[0].model.image_side, 10, groups=PATIENTS)
    privacy = replace(PRIVACY, unit="patient", max_images=4, physical_batch=4)
    alone = [vector(start, update(start, PRIVACY, plan(batch=1.0), examples.subset(np.array([i])))) for i in range(10)]
    patients = [np.mean([alone[i] for i in range(10) if PATIENTS[i] == name], axis=0) for name in "abcdef"]
    both = vector(start, update(start, privacy, plan(batch=6.0), examples))
    np.testing.assert_allclose(both, np.mean(patients, axis=0), rtol=2e-5, atol=1e-6)


def test_one_unit_moves_the_sum_by_no_more_than_the_bound(start):
    """In units of the clipped sum, the centre times bound over the root of its width; nearly reached by every image."""
    examples = random_examples(start[0].model.image_side, 10)
    whole = vector(start, update(start, PRIVACY, plan(batch=1.0), examples))
    for gone in (0, 7):
        rest = examples.subset(np.delete(np.arange(10), gone))
        less = vector(start, update(start, PRIVACY, plan(batch=1.0), rest))
        moved = np.linalg.norm(whole - less) * 0.25 / np.sqrt(len(whole))
        assert 0.15 < moved <= 0.25 + 1e-6


@pytest.mark.parametrize("steps", [1, 4])
def test_noise_has_the_stated_deviation_for_the_steps_that_are_charged(start, steps):
    empty = random_examples(start[0].model.image_side, 10).subset(np.array([], dtype=int))
    drawn = np.stack(
        [
            vector(start, update(start, replace(PRIVACY, test_seed=seed), plan(0.5, steps, 2.0, 5.0), empty))
            for seed in range(30)
        ]
    )
    expected = 2.0 * np.sqrt(drawn.shape[1]) / 5 / np.sqrt(steps)  # sigma C / batch, over the scale C / root of width
    assert drawn.std() == pytest.approx(expected, rel=6 / np.sqrt(2 * drawn.size))
    assert abs(drawn.mean()) <= 6 * expected / np.sqrt(drawn.size)


def test_a_broken_image_contributes_nothing(start, monkeypatch):
    module = start[1]
    real = type(module).to_centre

    def broken(self, inputs):
        return {
            name: torch.where(torch.arange(len(v))[:, None] == 0, torch.nan, v)
            for name, v in real(self, inputs).items()
        }

    examples, whole = random_examples(start[0].model.image_side, 10), replace(PRIVACY, physical_batch=10)
    others = vector(start, update(start, whole, plan(batch=1.0), examples.subset(np.arange(1, 10))))
    monkeypatch.setattr(type(module), "to_centre", broken)
    with_it = vector(start, update(start, whole, plan(batch=1.0), examples))
    np.testing.assert_allclose(with_it, others, rtol=2e-5, atol=1e-6)


def test_chunks_do_not_change_it_and_sampling_draws_as_ever(start, monkeypatch):
    first, second = (
        vector(start, update(start, replace(PRIVACY, physical_batch=size), plan(rate=0.5, steps=3, sigma=1.0)))
        for size in (10, 3)
    )
    np.testing.assert_allclose(first, second, rtol=0, atol=2e-6)
    rates = []
    real = Randomness.included
    monkeypatch.setattr(Randomness, "included", lambda self, n, rate: rates.append((n, rate)) or real(self, n, rate))
    update(start, PRIVACY, plan(rate=0.3, steps=5))
    assert rates == [(10, 0.3)] * 5


def test_the_next_round_trains_with_noise_and_leaves_the_mean(start):
    found = update(start, PRIVACY, plan(sigma=1.0))
    again = (start[0], start[1], {**start[2], **found.tensors})
    later = update(again, PRIVACY, plan(sigma=1.0), round_index=2)
    for name, value in later.tensors.items():
        assert np.array_equal(value, found.tensors[name]) == (name in centres(start[1]))


def test_the_mean_may_leave_where_a_running_statistic_may_not(start):
    check_private(start[1], exchanged(start[1]))
    assert {exchanged(start[1])[name] for name in centres(start[1])} == {"buffer"}
