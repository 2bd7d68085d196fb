from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import BudgetError, ConfigError
from fed_diffmic.privacy import dp_sgd
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.dp_sgd import Plan, make_plan, noised_counts, private_update, unit_members
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.privacy.shares import Allowance
from fed_diffmic.training.losses import prior_offset
from fed_diffmic.training.stage import Batch
from fed_diffmic.training.stages import exchanged, full_state, load_state
from fed_diffmic.training.update import LocalRound, SiteMemory
from tests.privacy.models import private_spec, random_examples, stage_module

PRIVACY = PrivacyConfig(name="dp_sgd", unit="image", noise_multiplier=1.0, delta=1e-3, test_seed=5)
PATIENTS = ["a", "a", "a", "b", "c", "c", "d", "e", "e", "f"]


@pytest.fixture(scope="module")
def start():
    spec = private_spec("tiny", lr=0.1, optimizer="sgd", weight_decay=0.0, schedule="constant", momentum=0.0)
    module = stage_module(spec, "guidance")
    return spec, module, full_state(module)


def update(start, privacy, plan, examples=None, **more):
    spec, module, state = start
    load_state(module.network, state)
    examples = random_examples(spec.model.image_side, 10, groups=PATIENTS) if examples is None else examples
    algorithm = Algorithm(StrategyConfig())
    at = LocalRound("s", 1)
    return private_update(module, examples, algorithm, at, privacy=privacy, plan=plan, **more)


def moved(start, result):
    """Change of each tensor over minus the learning rate: the gradient that was used."""
    return {name: (start[2][name] - value) / 0.1 for name, value in result.tensors.items()}


def plan(rate=0.5, steps=1, sigma=1.0, batch=5.0):
    return Plan(10, rate, steps, sigma, batch)


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_physical_chunks_do_not_change_the_update(start, unit):
    """One logical batch in one, two and five chunks, for the same noise."""
    results = [
        update(start, replace(PRIVACY, unit=unit, max_images=2, physical_batch=size), plan(rate=1.0))
        for size in (10, 5, 2)
    ]
    for other in results[1:]:
        for name, value in results[0].tensors.items():
            np.testing.assert_allclose(other.tensors[name], value, rtol=0, atol=2e-7)


def test_an_empty_batch_adds_noise_and_counts(start, monkeypatch):
    monkeypatch.setattr(Randomness, "included", lambda self, count, rate: np.array([], dtype=int))
    result = update(start, PRIVACY, plan(steps=3))
    assert result.metrics == {"steps": 3.0}
    change = np.concatenate([v.ravel() for v in moved(start, result).values()])
    assert change.std() == pytest.approx(3**0.5 / 5, rel=0.02)  # sigma C / expected batch, three times


def test_noise_has_the_stated_deviation_in_every_tensor(start):
    """Twenty updates without anybody in them: the deviation of each coordinate over updates."""
    privacy = replace(PRIVACY, max_grad_norm=0.3)
    parts = []
    for seed in range(20):
        empty = random_examples(start[0].model.image_side, 10).subset(np.array([], dtype=int))
        parts.append(moved(start, update(start, replace(privacy, test_seed=seed), plan(sigma=2.0), empty)))
    for name in parts[0]:
        values = np.stack([part[name].ravel() for part in parts])
        size = values.size
        assert values.std() == pytest.approx(2.0 * 0.3 / 5, rel=6 / np.sqrt(2 * size) + 1e-4)
        assert abs(values.mean()) <= 6 * 0.12 / np.sqrt(size)


def test_without_noise_it_is_clipped_gradient_descent(start):
    """The direct twin: each image's gradient by itself, clipped, summed, divided by the expected batch."""
    spec, module, state = start
    examples = random_examples(spec.model.image_side, 10)
    prior = np.array([0.2, 0.3, 0.5])
    result = update(
        start, replace(PRIVACY, max_grad_norm=0.5), plan(rate=1.0, sigma=0.0, batch=8.0), examples, prior=prior
    )
    load_state(module.network, state)
    total: dict[str, torch.Tensor] = {}
    for i in range(10):
        module.zero_grad(set_to_none=True)
        images = (examples.images(np.array([i])).float() / 255 - 0.5) / 0.5
        batch = Batch(images, torch.from_numpy(examples.labels[i : i + 1]), prior_offset(prior, spec.task))
        module.loss(batch, torch.Generator()).backward()
        own = {n: p.grad for n, p in module.network.named_parameters() if p.requires_grad}
        size = sum(g.square().sum() for g in own.values()).sqrt()
        for name, g in own.items():
            total[name] = total.get(name, 0) + g * min(1.0, 0.5 / size)
    for name, value in moved(start, result).items():
        np.testing.assert_allclose(value, total[name].numpy() / 8, rtol=0, atol=3e-6)


def test_one_unit_moves_the_update_by_no_more_than_the_bound(start):
    examples = random_examples(start[0].model.image_side, 10)
    quiet = replace(PRIVACY, max_grad_norm=0.25)
    whole = moved(start, update(start, quiet, plan(rate=1.0, sigma=0.0, batch=1.0), examples))
    for gone in (0, 4):
        rest = examples.subset(np.delete(np.arange(10), gone))
        less = moved(start, update(start, quiet, plan(rate=1.0, sigma=0.0, batch=1.0), rest))
        difference = np.sqrt(sum(((whole[n] - less[n]).astype(float) ** 2).sum() for n in whole))
        assert 0.2 <= difference <= 0.25 + 1e-4  # the gradients are far above the bound here


def test_two_updates_never_share_their_noise(start, monkeypatch):
    """Each takes one key of its own from the operating system, and the noise follows from that key alone.

    Said of the keys, which are known here: of the noise itself anything could only be said by chance.
    """
    real, given, taken = replace(PRIVACY, test_seed=None), [1, 2, 1], []

    def urandom(count):
        taken.append(count)
        return bytes([given[len(taken) - 1]]) * count

    monkeypatch.setattr("fed_diffmic.privacy.randomness.os.urandom", urandom)
    empty = random_examples(start[0].model.image_side, 10).subset(np.array([], dtype=int))
    first, second, again = (update(start, real, plan(steps=2), empty).tensors for _ in given)
    assert taken == [32, 32, 32]
    for name, one in first.items():
        assert np.array_equal(one, again[name]) and not np.array_equal(one, start[2][name]), name
    both = [np.concatenate([made[name].ravel() for name in first]) for made in (first, second)]
    assert (both[0] == both[1]).mean() < 1e-3  # of the two keys above, so always the same share


def test_noise_of_each_step_and_tensor_is_another_one(start):
    """One key, many draws: the second step does not take back what the first one added."""
    empty = random_examples(start[0].model.image_side, 10).subset(np.array([], dtype=int))
    one, two = (moved(start, update(start, PRIVACY, plan(steps=steps), empty)) for steps in (1, 2))
    for name, value in one.items():
        assert not np.allclose(two[name], 2 * value, atol=1e-4) and not np.allclose(two[name], value, atol=1e-4), name
    shapes = {}
    for value in one.values():
        shapes.setdefault(value.shape, []).append(value)
    alike = next(values for values in shapes.values() if len(values) > 1)
    assert not np.allclose(alike[0], alike[1], atol=1e-4)


def test_a_seeded_streams_noise_is_of_its_stage_site_and_round(start, monkeypatch):
    parts = []
    monkeypatch.setattr(dp_sgd, "Randomness", lambda *given: parts.append(given) or Randomness(*given))
    update(start, PRIVACY, plan())
    assert parts == [(5, "guidance", "s", 1)]


def test_the_private_schedule_goes_on_from_round_to_round(start, monkeypatch):
    spec, module, _ = start
    progress, rounds = [], spec.stage("guidance").rounds
    monkeypatch.setattr(dp_sgd, "set_learning_rate", lambda optimizer, cfg, share: progress.append(share))
    examples = random_examples(spec.model.image_side, 4)
    for round_index in (1, 2):
        algorithm = Algorithm(StrategyConfig())
        at = LocalRound("s", round_index)
        private_update(module, examples, algorithm, at, privacy=PRIVACY, plan=plan(steps=2))
    assert progress == pytest.approx([part / rounds for part in (0.0, 0.5, 1.0, 1.5)])


def test_only_the_number_of_steps_leaves(start):
    result = update(start, PRIVACY, plan(steps=2))
    assert result.num_examples == 1 and result.metrics == {"steps": 2.0}


def test_the_proximal_pull_is_outside_the_noise(start):
    """FedProx: after the first step the pull towards the start is there, whatever was drawn."""
    from fed_diffmic.algorithms import build_algorithm

    spec, module, state = start
    empty = random_examples(spec.model.image_side, 10).subset(np.array([], dtype=int))
    results = []
    for mu in (0.0, 1.0):
        load_state(module.network, state)
        algorithm = build_algorithm(StrategyConfig(name="fedprox", mu=mu))
        at = LocalRound("s", 1)
        results.append(private_update(module, empty, algorithm, at, privacy=PRIVACY, plan=plan(steps=2)))
    free, pulled = (moved(start, r) for r in results)
    name = max(free, key=lambda n: free[n].size)
    # Two steps of noise g1, g2: free = g1 + g2; pulled = g1 + g2 - 0.1 g1.
    assert 0.02 < np.abs(free[name] - pulled[name]).std() / np.abs(free[name]).std() < 0.2


def test_members_are_images_or_patients():
    examples = random_examples(32, 10, groups=PATIENTS)
    assert [list(m) for m in unit_members(examples, "image")] == [[i] for i in range(10)]
    assert [list(m) for m in unit_members(examples, "patient")] == [[0, 1, 2], [3], [4, 5], [6], [7, 8], [9]]
    assert unit_members(examples.subset(np.array([], dtype=int)), "patient") == []


def test_a_plan_spends_the_whole_runs_epsilon_and_not_more():
    spec = private_spec("tiny", rounds=4, epochs=2.0)
    privacy = replace(PRIVACY, noise_multiplier=None, epsilon=3.0, logical_batch=2, count_noise=20.0)
    examples = random_examples(32, 10)
    first, second = (make_plan(privacy, spec, stage, examples) for stage in ("guidance", "diffusion"))
    assert first == second and first.sample_rate == 0.2 and first.steps == 10 and first.expected_batch == 2.0
    run = [Mechanism(0.2, first.noise_multiplier, 10 * 4 * 2), Mechanism(1.0, 20.0, 1)]
    assert 2.9 < epsilon(run, 1e-3) <= 3.0


def test_a_plan_keeps_to_what_the_run_and_each_round_may_take():
    spec = private_spec("tiny", rounds=4, steps=2)
    privacy = replace(PRIVACY, noise_multiplier=None, epsilon=3.0, logical_batch=1000, count_noise=20.0)
    examples = random_examples(32, 10)

    def cost(most):
        sigma = make_plan(privacy, spec, "guidance", examples, most).noise_multiplier
        run = epsilon([Mechanism(1.0, sigma, 2 * 4 * 2), Mechanism(1.0, 20.0, 1)], privacy.delta)
        return run, epsilon([Mechanism(1.0, sigma, 2)], privacy.delta)

    assert cost(Allowance(9.0, 9.0, 9.0)) == cost(None)
    assert 2.99 < cost(None)[0] <= 3.0
    assert 1.99 < cost(Allowance(2.0, 2.0, 2.0))[0] <= 2.0
    run, alone = cost(Allowance(3.0, 3.0, 0.5))
    assert run < 2.9 and 0.49 < alone <= 0.5
    with pytest.raises(BudgetError, match="less than a tenth"):
        make_plan(privacy, spec, "guidance", examples, Allowance(0.29, 0.29, 0.29))
    dear = replace(privacy, count_noise=3.0)
    with pytest.raises(BudgetError, match="not enough"):
        make_plan(dear, spec, "guidance", examples, Allowance(0.5, 0.5, 0.5))


def test_a_public_number_of_units_sets_rate_and_batch():
    spec = private_spec("tiny", steps=7)
    chosen = make_plan(replace(PRIVACY, nominal_units=40, logical_batch=4), spec, "guidance", random_examples(32, 10))
    assert (chosen.units, chosen.sample_rate, chosen.steps, chosen.expected_batch) == (40, 0.1, 7, 4.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"delta": 0.2}, "privacy.delta"),
        ({"noise_multiplier": None, "epsilon": None}, "privacy.noise_multiplier"),
        ({"noise_multiplier": None, "epsilon": 0.01, "count_noise": 1.0}, "privacy.epsilon"),
    ],
)
def test_a_plan_that_cannot_be_says_which_key(change, match):
    with pytest.raises(ConfigError, match=match):
        make_plan(replace(PRIVACY, **change), private_spec("tiny"), "guidance", random_examples(32, 10))


def test_counts_are_of_units_and_noised(monkeypatch):
    spec = private_spec("tiny")
    examples = random_examples(32, 10, groups=PATIENTS)
    monkeypatch.setattr(Randomness, "normal", lambda self, count: torch.zeros(count, dtype=torch.float64))
    privacy = replace(PRIVACY, unit="patient", max_images=2)
    by_hand = sum(np.eye(3)[examples.labels[np.array(PATIENTS) == name]].mean(axis=0) for name in "abcdef")
    np.testing.assert_allclose(noised_counts(examples, spec, privacy, Randomness(0)), by_hand)  # patient a counts once
    np.testing.assert_array_equal(
        noised_counts(examples, spec, PRIVACY, Randomness(0)), np.bincount(examples.labels, minlength=3)
    )
    monkeypatch.setattr(Randomness, "normal", lambda self, count: torch.full((count,), -1.0, dtype=torch.float64))
    assert (noised_counts(examples, spec, PRIVACY, Randomness(0)) == 0).all()
    monkeypatch.setattr(Randomness, "normal", lambda self, count: torch.ones(count, dtype=torch.float64))
    assert noised_counts(examples, spec, privacy, Randomness(0)).sum() == pytest.approx(6 + 3 * 20)


@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_unit_more_changes_the_counts_by_no_more_than_the_noise_is_made_for(unit, task, monkeypatch):
    spec, privacy = private_spec("tiny", task=task), replace(PRIVACY, unit=unit)
    examples = random_examples(32, 10, task=task, groups=PATIENTS)
    monkeypatch.setattr(Randomness, "normal", lambda self, count: torch.zeros(count, dtype=torch.float64))
    whole = noised_counts(examples, spec, privacy, Randomness(0))
    for members in unit_members(examples, unit):
        rest = examples.subset(np.delete(np.arange(10), members))
        moved = np.linalg.norm(whole - noised_counts(rest, spec, privacy, Randomness(0)))
        assert moved <= dp_sgd.count_sensitivity(spec) + 1e-12


def test_live_batch_norm_is_refused_timms_too(start):
    spec = private_spec("tiny")
    live = stage_module(replace(spec, model=replace(spec.model, encoder_norm="train")), "guidance")
    with pytest.raises(ConfigError, match="batch norm") as caught:
        check_private(live, exchanged(live))
    assert "model.encoder_norm" in caught.value.remedy
    check_private(start[1], exchanged(start[1]))


def test_drop_out_and_a_buffer_that_would_leave_are_refused(start):
    module = start[1]
    with pytest.raises(ConfigError, match="parameters alone"):
        check_private(module, {**exchanged(module), "x.running_mean": "buffer"})
    with pytest.raises(ConfigError, match="trains something"):
        check_private(module, {})
    module.network.add_module("drop", torch.nn.Dropout(0.1))
    try:
        with pytest.raises(ConfigError, match="drop"):
            check_private(module, exchanged(module))
    finally:
        del module.network.drop


def test_a_private_step_looks_at_no_label_frequency(start, monkeypatch):
    """The balanced loss takes the noised prior it is given, never one that it counts."""

    def forbidden(*args):
        raise AssertionError

    monkeypatch.setattr("fed_diffmic.training.losses.label_prior", forbidden)
    monkeypatch.setattr("fed_diffmic.training.local.label_prior", forbidden)
    assert not hasattr(dp_sgd, "label_prior")
    update(start, PRIVACY, plan())


def test_a_control_variate_is_made_of_noised_gradients_alone(start):
    """SCAFFOLD sends and keeps the mean of what the optimizer was given, noise included; nobody is drawn here."""
    from fed_diffmic.algorithms import build_algorithm

    spec, module, state = start
    load_state(module.network, state)
    empty = random_examples(spec.model.image_side, 10).subset(np.array([], dtype=int))
    algorithm = build_algorithm(StrategyConfig(name="scaffold"))
    names = [name for name, kind in exchanged(module).items() if kind == "parameter"]
    control = algorithm.broadcast(state, algorithm.initial_state(state, dict.fromkeys(names, "parameter")))
    at, memory = LocalRound("s", 1), SiteMemory(received=control)
    result = private_update(module, empty, algorithm, at, memory, privacy=PRIVACY, plan=plan(steps=4))
    assert result.algorithm_tensors.keys() == control.keys()
    for name in names:
        own = result.algorithm_state[f"algorithm/own.{name}"]
        np.testing.assert_allclose(own, result.algorithm_tensors[f"algorithm/control.{name}"], rtol=0, atol=0)
        np.testing.assert_allclose(own, moved(start, result)[name] / 4, rtol=0, atol=2e-6)
        assert np.abs(own).max() > 0
