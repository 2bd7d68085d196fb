"""The private centring round: the same mechanism as a training round, with features in the place of gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.distributed.step import UNITS, form_at_site, mean_features, noised_words, unit_weight
from fed_diffmic.privacy.dp_sgd import Plan, private_update
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.training.centring import find_centre
from fed_diffmic.training.stages import centres, exchanged, full_state, load_state
from fed_diffmic.training.update import LocalRound
from server.exchange import StageTask, TrainRequest
from server.noisy import form_of, is_centring, moved
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


SHARING = replace(PRIVACY, noise_multiplier=None, mechanism="distributed", budget_alone=100.0)
OPTIONS = {"noise_share": 1.0, "clip_norm": 0.25, "sample_rate": 1.0}
FEDSGD = build_algorithm(StrategyConfig(name="fedsgd", options=OPTIONS))


def shared_words(start, monkeypatch, index=1):
    """The words of ten images' round in which every unit takes part, without noise, and their form."""
    spec, module, state = start
    load_state(module.network, state)
    monkeypatch.setattr(NoisyForm, "noise", lambda self, random: np.zeros(self.width, dtype=np.int64))
    form = form_at_site(module, FEDSGD, index)
    examples = random_examples(spec.model.image_side, 10)
    return noised_words(module, examples, LocalRound("s", index), form, 1.0, privacy=SHARING), form


def asked(start, index=1, **changed):
    """What the coordinator asks of that round."""
    _, module, state = start
    kinds = exchanged(module)
    sent = {name: changed.get(name, state[name]) for name in kinds}
    task = StageTask(module.stage, {}, "")
    return TrainRequest(task, sent, FEDSGD, index, 0.0, kinds=kinds)


def test_with_shared_noise_it_is_the_sum_of_the_units_features(start, monkeypatch):
    words, form = shared_words(start, monkeypatch)
    spec, module, state = start
    load_state(module.network, state)
    find_centre(module, random_examples(spec.model.image_side, 10), "cpu")
    twin, sums = full_state(module), form.sums(words)
    weight = unit_weight(form.numbers - 1)
    assert abs(sums[UNITS][0] - 10.0 * weight) < 10 * 0.75 * form.clip_norm / form.quanta
    found = mean_features(sums)
    assert set(found) == set(centres(module)) == set(form.shapes) - {UNITS}
    for name, value in found.items():
        assert np.abs(twin[name]).max() > 0.01
        np.testing.assert_allclose(value, twin[name], atol=1.5 * form.clip_norm / form.quanta)
    # Whatever the sites said of how many units they have.
    [update_of_a, _] = moved(words, form, asked(start), {"a": 600, "b": 4})
    for name, value in update_of_a.tensors.items():
        wanted = found[name] if name in found else state[name]
        assert value.dtype == np.float64 and np.array_equal(value, wanted)


def test_coordinator_and_site_know_a_centring_round_by_its_weights(start):
    """The same form on both sides; where there is a mean, or later on, that of gradients, which leaves the mean out."""
    spec, module, state = start
    load_state(module.network, state)
    width = sum(state[name].size for name in centres(module))
    form = form_at_site(module, FEDSGD, 1)
    assert is_centring(asked(start)) and form.numbers == width + 1
    assert form.clip_norm == pytest.approx(math.sqrt(width * 9 / 8))
    assert form_of(spec, asked(start)).digest == form.digest
    later = form_at_site(module, FEDSGD, 2)
    assert form_of(spec, asked(start, 2)).digest == later.digest
    given = {centres(module)[0]: np.ones_like(state[centres(module)[0]])}
    load_state(module.network, {**state, **given})
    begun = form_at_site(module, FEDSGD, 1)
    assert form_of(spec, asked(start, 1, **given)).digest == begun.digest
    for other in (later, begun):
        assert not set(other.shapes) & set(centres(module)) and other.clip_norm == 0.25


def test_a_unit_adds_no_more_to_the_shared_sum_than_its_noise_is_for(start, monkeypatch):
    """Features that are no longer scaled to one length are clipped like gradients."""
    module = start[1]
    real = type(module).to_centre
    large = dict.fromkeys(centres(module), 50.0)
    monkeypatch.setattr(
        type(module), "to_centre", lambda self, inputs: {n: v * large[n] for n, v in real(self, inputs).items()}
    )
    words, form = shared_words(start, monkeypatch)
    total = np.concatenate([value.ravel() for value in form.sums(words).values()])
    assert np.linalg.norm(total) <= 10 * form.clip_norm * (1 + 1e-3)
    assert np.any(words)


@pytest.mark.parametrize("drawn", [-3.0, 0.2, 4.0])
def test_a_mean_is_no_longer_than_features_are_whatever_its_noise_or_a_site_made_of_it(drawn):
    """Noise can leave hardly a unit in the number that the sum is divided by, and the mean stays for a whole stage."""
    features = {"global_centre.mean": np.full(8, 100.0), "local_centre.mean": np.linspace(-1, 1, 8)}
    weight = unit_weight(16)
    found = mean_features({**features, UNITS: np.array([drawn * weight])})
    assert set(found) == set(features)
    np.testing.assert_allclose(found["global_centre.mean"], 1.0)
    np.testing.assert_allclose(found["local_centre.mean"], features["local_centre.mean"] / max(1.0, drawn))


def test_the_number_of_units_has_the_noise_of_three_whatever_the_features_width():
    for width in (16, 432, 2560):
        assert math.sqrt(width + unit_weight(width) ** 2) / unit_weight(width) == pytest.approx(3.0)
