"""The local update: equal bits, order of batches, what moves and what does not."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms import FedAvg, build_algorithm
from fed_diffmic.config.simulation import ModelConfig, StageConfig, StagesConfig, StrategyConfig
from fed_diffmic.training import local
from fed_diffmic.training.features import FeatureStore
from fed_diffmic.training.stages import build_module, exchanged, full_state, initial_state, load_state
from tests.toy import toy_site, toy_spec

TINY = ModelConfig(
    name="tiny",
    image_side=32,
    regions=2,
    crop=16,
    latent=16,
    attention=8,
    timesteps=50,
    sampling_steps=5,
    guidance_backbone="test_efficientnet",
    local_backbone="test_efficientnet",
    prior_backbone="test_efficientnet",
    region_backbone="test_efficientnet",
    feature_stride=16,
    norm="group",
    encoder_norm="group",
    prior_init="guidance",
)


def tiny_spec(**changes):
    base = toy_spec(rounds=2)
    diffusion = replace(base.stages.diffusion, encoders="frozen", draws=2)
    return replace(base, model=TINY, stages=replace(base.stages, diffusion=diffusion), **changes)


def tiny_site(name="a", seed=1):
    return toy_site(name, seed, count=24, side=32)


def start(spec, stage, guidance=None):
    module = build_module(spec, stage)
    load_state(module.network, initial_state(spec, stage, guidance))
    return module


def run(spec, stage="plain", round_index=1, **arguments):
    module = start(spec, stage, arguments.pop("guidance", None))
    algorithm = build_algorithm(spec.strategy)
    site = tiny_site()
    return local.local_update(module, site.train, algorithm, site="a", round_index=round_index, **arguments)


def same(a, b):
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


@pytest.fixture(scope="module")
def guidance():
    return full_state(start(tiny_spec(), "guidance"))


@pytest.mark.parametrize("stage", ["guidance", "diffusion", "plain"])
def test_equal_bits_from_equal_seeds_and_others_from_another_round(stage, guidance):
    spec = tiny_spec()
    first, again = run(spec, stage, guidance=guidance), run(spec, stage, guidance=guidance)
    other = run(spec, stage, round_index=2, guidance=guidance)
    assert same(first.tensors, again.tensors)
    assert not same(first.tensors, other.tensors)
    assert first.num_examples == 12 and first.metrics["steps"] == 3


def test_torchs_global_generator_does_not_matter():
    spec = tiny_spec()
    torch.manual_seed(1)
    first = run(spec)
    torch.manual_seed(2)
    assert same(first.tensors, run(spec).tensors)


def test_only_exchanged_tensors_change_in_the_diffusion_stage(guidance):
    spec = tiny_spec()
    module = start(spec, "diffusion", guidance)
    before = full_state(module)
    result = local.local_update(module, tiny_site().train, FedAvg(StrategyConfig()), site="a", round_index=1)
    after = full_state(module)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed <= set(result.tensors) == set(exchanged(module))
    assert not any(name.startswith("guidance.") or "encoder" in name for name in result.tensors)
    assert any("timestep_table" in name for name in changed)


def test_kept_features_give_the_same_bits_as_computing_them_each_time(guidance):
    spec = tiny_spec()
    store = FeatureStore()
    plain = run(spec, "diffusion", guidance=guidance)
    filled = run(spec, "diffusion", guidance=guidance, store=store, store_key="k")
    reused = run(spec, "diffusion", guidance=guidance, store=store, store_key="k")
    assert store.get("k") is not None
    assert same(plain.tensors, filled.tensors) and same(plain.tensors, reused.tensors)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizer_state_is_returned_only_where_it_is_declared_and_continues(optimizer):
    base = tiny_spec()
    stages = replace(base.stages, plain=replace(base.stages.plain, optimizer=optimizer))
    spec = replace(base, stages=stages)
    assert run(spec).optimizer_state is None
    keeping = replace(spec, strategy=StrategyConfig(keep_optimizer_state=True))
    state = run(keeping).optimizer_state
    assert state
    fresh, continued = run(keeping, round_index=2), run(keeping, round_index=2, optimizer_state=state)
    assert not same(fresh.tensors, continued.tensors)
    if optimizer == "adamw":
        steps = {v.item() for n, v in continued.optimizer_state.items() if n.startswith("step/")}
        assert steps == {6.0}


def test_the_proximal_term_keeps_the_update_nearer():
    def moved(mu):
        spec = tiny_spec(strategy=StrategyConfig(name="fedprox", mu=mu))
        base, result = initial_state(spec, "plain"), run(spec)
        return sum(float(((v - base[n]) ** 2).sum()) for n, v in result.tensors.items())

    assert moved(10.0) < moved(0.0)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (9, 4), (1, 4), (33, 32), (64, 32)])
def test_batches_cover_every_image_once_a_pass_without_stragglers(count, size):
    source = local.batches(count, size, np.random.default_rng(0))
    parts = -(-count // size)
    for _ in range(2):
        one_pass = [next(source) for _ in range(parts)]
        assert sorted(np.concatenate(one_pass).tolist()) == list(range(count))
        assert max(map(len, one_pass)) <= size and max(map(len, one_pass)) - min(map(len, one_pass)) <= 1


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2.0, 0, 6), (0.34, 0, 1), (0.01, 0, 1), (1.0, 7, 7)])
def test_budget_in_passes_or_steps(epochs, steps, expected):
    base = tiny_spec()
    stages = replace(base.stages, plain=replace(base.stages.plain, epochs=epochs, steps=steps))
    assert run(replace(base, stages=stages)).metrics["steps"] == expected


def test_learning_rate_is_a_cosine_over_the_stage_and_smaller_for_encoders():
    cfg = StageConfig(rounds=4, lr=0.1, encoder_lr_scale=0.5)
    spec = replace(tiny_spec(), stages=StagesConfig(plain=cfg))
    optimizer = local.build_optimizer(start(spec, "plain"), cfg)
    local.set_learning_rate(optimizer, cfg, 0.0)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.1, 0.05}
    local.set_learning_rate(optimizer, cfg, 0.5)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.05, 0.025}
    local.set_learning_rate(optimizer, replace(cfg, schedule="constant"), 0.9)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.1, 0.05}


def test_no_decay_on_vectors_and_timestep_tables(guidance):
    module = start(tiny_spec(), "diffusion", guidance)
    optimizer = local.build_optimizer(module, module.spec.stages.diffusion)
    names = {p: n for n, p in module.network.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            plain = parameter.ndim < 2 or "timestep_table" in names[parameter]
            assert (group["weight_decay"] == 0.0) == plain


def test_an_empty_site_and_a_diverging_loss_raise():
    spec = tiny_spec()
    site, module = tiny_site(), start(spec, "plain")
    with pytest.raises(ValueError, match="without training images"):
        local.local_update(
            module, site.train.subset(np.array([], int)), FedAvg(StrategyConfig()), site="a", round_index=1
        )
    with torch.no_grad():
        next(module.network.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="infinite or not a number"):
        local.local_update(module, site.train, FedAvg(StrategyConfig()), site="a", round_index=1)


@pytest.mark.parametrize(("strategy", "kept"), [("fedavg", False), ("fedprox", True)])
def test_neither_gradients_nor_an_unused_copy_of_the_weights_are_held(strategy, kept, monkeypatch):
    """With the largest model each is half a gigabyte."""
    spec = tiny_spec(strategy=StrategyConfig(name=strategy, mu=0.1))
    module = start(spec, "plain")
    made, held, real = [], [], local.local_context

    def remember(*arguments):
        context = real(*arguments)
        made.append([weakref.ref(value) for value in context.reference.values()])
        return context

    monkeypatch.setattr(local, "local_context", remember)
    monkeypatch.setattr(local, "check_time", lambda: held.append(any(ref() is not None for ref in made[0])))
    local.local_update(module, tiny_site().train, build_algorithm(spec.strategy), site="a", round_index=1)
    assert held and set(held) == {kept}
    assert [name for name, p in module.network.named_parameters() if p.grad is not None] == []


def test_threads_are_set_by_the_local_update():
    run(tiny_spec(threads=1))
    assert torch.get_num_threads() == 1
