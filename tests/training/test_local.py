"""The local update: equal bits, order of batches, what moves and what does not."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.algorithms.fedavg import FedAvg
from fed_diffmic.config.simulation import ModelConfig, StageConfig, StagesConfig, StrategyConfig
from fed_diffmic.training import local
from fed_diffmic.training import stages as stages_module
from fed_diffmic.training.features import FeatureStore
from fed_diffmic.training.optimizer import build_optimizer, load_optimizer_state, optimizer_tensors, set_learning_rate
from fed_diffmic.training.stages import build_module, exchanged, full_state, initial_state, load_state
from fed_diffmic.training.update import LocalRound, SiteMemory
from tests.toy import ToyNet, toy_site, toy_spec

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
    memory = arguments.pop("memory", None)
    return local.local_update(module, tiny_site().train, algorithm, LocalRound("a", round_index, **arguments), memory)


def same(a, b):
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


@pytest.fixture(scope="module")
def guidance():
    return full_state(start(tiny_spec(), "guidance"))


@pytest.mark.parametrize("stage", ["guidance", "diffusion", "plain"])
def test_equal_bits_from_equal_seeds(stage, guidance):
    """What other seeds change is asked of each draw by itself (test_each_draw_is_of_its_round_site_and_seed)."""
    spec = tiny_spec()
    first, again = run(spec, stage, guidance=guidance), run(spec, stage, guidance=guidance)
    assert same(first.tensors, again.tensors)
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
    result = local.local_update(module, tiny_site().train, FedAvg(StrategyConfig()), LocalRound("a", 1))
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
    fresh, continued = run(keeping, round_index=2), run(keeping, round_index=2, memory=SiteMemory(optimizer=state))
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


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_no_batch_of_two_or_more_is_of_a_single_image(count):
    source, passes = local.batches(count, 2, np.random.default_rng(0)), []
    while sum(map(len, passes)) < 2 * count:
        passes.append(next(source))
    assert {len(index) for index in passes} <= {2, 3}
    assert sorted(np.concatenate(passes).tolist()) == sorted([*range(count), *range(count)])
    assert {len(next(local.batches(count, 1, np.random.default_rng(0)))) for _ in range(3)} == {1}


def test_an_odd_number_of_images_in_batches_of_two_trains_with_batch_norm(guidance):
    base = replace(tiny_spec(), model=replace(TINY, norm="batch"))
    spec = replace(base, stages=replace(base.stages, diffusion=replace(base.stages.diffusion, batch_size=2)))
    train = toy_site("a", 1, count=10, side=32).train
    module, algorithm = start(spec, "diffusion", guidance), build_algorithm(spec.strategy)
    assert len(train) == 5
    result = local.local_update(module, train, algorithm, LocalRound("a", 1))
    assert result.metrics["steps"] == 3 and np.isfinite(result.metrics["loss"])


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2.0, 0, 6), (0.34, 0, 1), (0.01, 0, 1), (1.0, 7, 7)])
def test_budget_in_passes_or_steps(epochs, steps, expected):
    base = tiny_spec()
    stages = replace(base.stages, plain=replace(base.stages.plain, epochs=epochs, steps=steps))
    assert run(replace(base, stages=stages)).metrics["steps"] == expected


def test_learning_rate_is_a_cosine_over_the_stage_and_smaller_for_encoders():
    cfg = StageConfig(rounds=4, lr=0.1, encoder_lr_scale=0.5)
    spec = replace(tiny_spec(), stages=StagesConfig(plain=cfg))
    optimizer = build_optimizer(start(spec, "plain"), cfg)
    set_learning_rate(optimizer, cfg, 0.0)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.1, 0.05}
    set_learning_rate(optimizer, cfg, 0.5)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.05, 0.025}
    set_learning_rate(optimizer, replace(cfg, schedule="constant"), 0.9)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.1, 0.05}


def test_no_decay_on_vectors_and_timestep_tables(guidance):
    module = start(tiny_spec(), "diffusion", guidance)
    optimizer = build_optimizer(module, module.spec.stages.diffusion)
    names = {p: n for n, p in module.network.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            plain = parameter.ndim < 2 or "timestep_table" in names[parameter]
            assert (group["weight_decay"] == 0.0) == plain


def test_an_empty_site_and_a_diverging_loss_raise():
    spec = tiny_spec()
    site, module = tiny_site(), start(spec, "plain")
    with pytest.raises(ValueError, match="without training images"):
        local.local_update(module, site.train.subset(np.array([], int)), FedAvg(StrategyConfig()), LocalRound("a", 1))
    with torch.no_grad():
        next(module.network.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="infinite or not a number"):
        local.local_update(module, site.train, FedAvg(StrategyConfig()), LocalRound("a", 1))


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
    local.local_update(module, tiny_site().train, build_algorithm(spec.strategy), LocalRound("a", 1))
    assert held and set(held) == {kept}
    assert [name for name, p in module.network.named_parameters() if p.grad is not None] == []


def test_threads_are_set_by_the_local_update():
    run(tiny_spec(threads=1))
    assert torch.get_num_threads() == 1


def drawn(monkeypatch, spec, *, round_index=1, site="a", count=12, strategy="fedavg", **stage):
    """What a round draws, network or no network: of each pass the order, the noise, and the pixels that were seen."""
    spec = replace(spec, stages=replace(spec.stages, plain=replace(spec.stages.plain, **stage)))
    seen = []

    def loss(self, batch, generator):
        seen.append((batch.labels.tolist(), torch.rand(3, generator=generator).tolist(), batch.inputs.numpy().copy()))
        return next(p for p in self.network.parameters() if p.requires_grad).sum() * 0 + 2.0 ** len(seen)

    with monkeypatch.context() as patch:
        patch.setattr(stages_module, "build_plain", lambda *_: ToyNet())
        patch.setattr(stages_module.ClassifierStage, "loss", loss)
        module = start(spec, "plain")
        algorithm = build_algorithm(StrategyConfig(name=strategy))
        train = toy_site("a", 1).train  # images of ToyNet's side
        train = replace(train, labels=np.arange(12)).subset(np.arange(count))
        result = local.local_update(module, train, algorithm, LocalRound(site, round_index))
    return seen, result


def draws_of(seen):
    return {
        "order": [labels for labels, _, _ in seen],
        "noise": [noise for _, noise, _ in seen],
        "pixels": [pixels.tobytes() for _, _, pixels in seen],
    }


@pytest.mark.parametrize("other", ["round", "site", "seed"])
@pytest.mark.parametrize("what", ["order", "noise", "pixels"])
def test_each_draw_is_of_its_round_site_and_seed(monkeypatch, what, other):
    """Each by itself: that the results differ would be true while any one of the seeds did."""
    spec = replace(tiny_spec(), modality="dermoscopy")
    # One image alone has one order: pixels then tell what augmentation does, labels what the order is.
    given = {"augment": True, "count": 1, "steps": 4} if what == "pixels" else {"augment": False}
    first, again = (draws_of(drawn(monkeypatch, spec, **given)[0])[what] for _ in range(2))
    assert first == again and len(first) > 2
    changed = {"round": {"round_index": 2}, "site": {"site": "b"}, "seed": {}}[other]
    spec = replace(spec, seed=4) if other == "seed" else spec
    assert draws_of(drawn(monkeypatch, spec, **given, **changed)[0])[what] != first


def test_each_draw_is_of_its_stage(monkeypatch):
    """The guidance network and the head of one site see other orders."""
    names = []
    monkeypatch.setattr(local, "torch_generator", lambda *parts, device: names.append(parts))
    monkeypatch.setattr(local, "numpy_generator", lambda *parts: names.append(parts))
    monkeypatch.setattr(local, "batches", lambda *_: iter(()))
    monkeypatch.setattr(stages_module, "build_plain", lambda *_: ToyNet())
    monkeypatch.setattr(stages_module, "build_guidance", lambda *_: ToyNet())
    for stage in ("guidance", "plain"):
        module = start(toy_spec(), stage)
        work = local._Work(module, toy_site("a", 1).train, lambda index: index, None, LocalRound("a", 1), 3)
        work.run(build_optimizer(module, module.spec.stage(stage)), lambda: None, None)
    assert len(names) == 4 == len(set(names))


def test_the_personal_pass_of_a_round_has_draws_of_its_own(monkeypatch):
    seen, _ = drawn(monkeypatch, tiny_spec(), strategy="ditto", augment=False)
    found = draws_of(seen)
    half = len(seen) // 2
    assert half == 3
    for what in ("order", "noise"):
        assert found[what][:half] != found[what][half:], what


def test_the_loss_of_a_round_is_the_mean_over_its_steps(monkeypatch):
    _, result = drawn(monkeypatch, tiny_spec(), augment=False)
    assert result.metrics["loss"] == pytest.approx((2 + 4 + 8) / 3)


def test_the_schedule_goes_on_from_round_to_round(monkeypatch):
    progress = []
    monkeypatch.setattr(local, "set_learning_rate", lambda optimizer, cfg, share: progress.append(share))
    for round_index in (1, 2, 4):
        drawn(monkeypatch, tiny_spec(), round_index=round_index, rounds=4, augment=False)
    begun = np.array([[0.0], [0.25], [0.75]]) + np.array([0, 1, 2]) / 12
    np.testing.assert_allclose(progress, begun.ravel(), atol=1e-12)


def test_an_initial_loss_is_of_unaugmented_images_in_evaluation_mode_weighted_by_image(monkeypatch):
    """70 images in chunks of 64 and 6: the mean over images, not over chunks; batch norm's statistics stay."""
    monkeypatch.setattr(stages_module, "build_plain", lambda *_: ToyNet())
    module = start(tiny_spec(), "plain")
    data = toy_site("a", 1, count=140)
    assert len(data.train) == 70
    with torch.no_grad():
        module.network.norm.running_mean.fill_(0.3)
        module.network.norm.running_var.fill_(2.0)
    before = full_state(module)
    module.train()
    found = local.mean_loss(module, data.train, None, torch.Generator(), "cpu")
    assert module.training
    assert same(before, full_state(module))
    with torch.no_grad():
        images = local.normalise(data.train.images(np.arange(70)), module.spec.mean, module.spec.std)
        logits = module.network.eval()(images)
        wanted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.train.labels))
    assert found == pytest.approx(float(wanted), abs=1e-5)


def test_moments_come_back_by_name(monkeypatch):
    """Two parameters of one shape must not take each other's moments."""
    monkeypatch.setattr(stages_module, "build_plain", lambda *_: ToyNet())
    module = start(tiny_spec(), "plain")
    cfg = module.spec.stages.plain
    optimizer = build_optimizer(module, cfg)
    for number, parameter in enumerate(p for p in module.network.parameters() if p.requires_grad):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    optimizer.step()
    kept = optimizer_tensors(optimizer, module.network)
    assert set(kept) == {
        f"{moment}/{name}"
        for moment in ("step", "exp_avg", "exp_avg_sq")
        for name in ("norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    fresh = build_optimizer(module, cfg)
    load_optimizer_state(fresh, module.network, {**kept, "exp_avg/frozen.weight": kept["exp_avg/head.weight"]})
    again = optimizer_tensors(fresh, module.network)
    assert same(kept, again)
    by_name = {name: float(kept[f"exp_avg/{name}"].ravel()[0]) for name in ("norm.weight", "norm.bias", "head.weight")}
    assert by_name == pytest.approx({"norm.weight": 0.1, "norm.bias": 0.2, "head.weight": 0.3})
