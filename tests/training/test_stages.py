"""What each stage starts from, exchanges and computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.models.diffusion import forward_diffusion, residual_base
from fed_diffmic.models.normalisation import live_batch_norms
from fed_diffmic.training import stages
from fed_diffmic.training.stage import Batch
from fed_diffmic.training.stages import (
    build_module,
    exchanged,
    full_state,
    initial_state,
    load_state,
    loaded_module,
    set_tensors,
)
from tests.toy import toy_spec

BATCH = ModelConfig(
    image_side=32,
    regions=2,
    crop=16,
    latent=8,
    timesteps=20,
    sampling_steps=4,
    guidance_backbone="test_efficientnet",
    local_backbone="test_efficientnet",
    prior_backbone="test_efficientnet",
    region_backbone="test_efficientnet",
    feature_stride=16,
    norm="batch",
    encoder_norm="train",
)


def spec_with(encoders="train", task="multiclass", **model):
    spec = toy_spec()
    diffusion = replace(spec.stages.diffusion, encoders=encoders)
    stages = replace(spec.stages, diffusion=diffusion)
    return replace(spec, task=task, model=replace(BATCH, **model), stages=stages)


def diffusion(spec):
    guidance = initial_state(spec, "guidance")
    module = build_module(spec, "diffusion")
    load_state(module.network, initial_state(spec, "diffusion", guidance))
    return module, guidance


def test_a_residual_heads_loss_is_in_units_of_what_it_is_to_predict():
    spec = spec_with(denoiser="residual", norm="group", encoder_norm="group")
    module, _ = diffusion(spec)
    module.eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    generator = torch.Generator().manual_seed(5)
    t, noise = draws = module.draws(4, generator, "cpu")
    with torch.no_grad():
        inputs = module.inputs(images)
        losses = module.losses(Batch(inputs, labels, None), draws)
        _, guidance_map = module.network.condition(inputs)
    abar, onehot = module.network.alphas_cumprod, torch.eye(3)[labels]
    for image in range(4):
        guess = torch.softmax(guidance_map[image], 0)
        squares = []
        for at, drawn in zip(t[image], noise[image], strict=True):
            noisy = forward_diffusion(onehot[image][None], at[None], drawn[None], abar)[0]
            base, unit = residual_base(noisy, guess, abar[at].unsqueeze(0))
            squares.append(((drawn - base) / unit).square().mean())
        weight = 1 + spec.stages.diffusion.alpha * (1 - torch.softmax(inputs.fused[image], 0)[labels[image]])
        torch.testing.assert_close(losses[image], weight * torch.stack(squares).mean(), rtol=1e-3, atol=1e-4)


def test_initial_states_are_seeded_and_differ_between_stages_seeds():
    spec = spec_with()
    first, again = initial_state(spec, "plain"), initial_state(spec, "plain")
    other = initial_state(replace(spec, seed=4), "plain")
    assert all(first[n].tobytes() == again[n].tobytes() for n in first)
    assert any(first[n].tobytes() != other[n].tobytes() for n in first)


def test_live_batch_norm_crosses_with_its_statistics_and_counters():
    kinds = exchanged(build_module(spec_with(), "plain"))
    assert set(kinds.values()) == {"parameter", "buffer", "counter"}
    assert all(n.endswith("num_batches_tracked") for n, k in kinds.items() if k == "counter")
    assert list(kinds) == sorted(kinds)


def test_frozen_batch_norm_does_not_cross_and_stays_in_evaluation_mode():
    module = build_module(spec_with(encoder_norm="frozen"), "plain")
    module.train()
    assert set(exchanged(module).values()) == {"parameter"}
    assert live_batch_norms(module) == []


@pytest.mark.parametrize("encoders", ["train", "frozen"])
def test_the_guidance_inside_the_diffusion_stage_never_crosses(encoders):
    module, guidance = diffusion(spec_with(encoders))
    kinds = exchanged(module)
    assert kinds and not any(name.startswith("guidance.") for name in kinds)
    assert any("encoder" in name for name in kinds) == (encoders == "train")
    state = full_state(module)
    assert all(np.array_equal(state[f"guidance.{n}"], v) for n, v in guidance.items())
    module.train()
    assert not any(name.startswith("guidance") for name in live_batch_norms(module.network))


def test_a_guidance_stage_on_frozen_encoders_trains_and_sends_its_heads_alone():
    spec = spec_with(norm="group", encoder_norm="frozen")
    frozen = replace(spec, stages=replace(spec.stages, guidance=replace(spec.stages.guidance, encoders="frozen")))
    module = build_module(frozen, "guidance").train()
    names = set(exchanged(module))
    assert names and all(name.startswith(("saliency.", "local_head.")) for name in names)
    assert names == {name for name in exchanged(build_module(spec, "guidance")) if "encoder." not in name}
    state = initial_state(frozen, "guidance")
    assert all(np.array_equal(state[name], value) for name, value in initial_state(spec, "guidance").items())
    load_state(module.network, state)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    encoded, generator = module.inputs(images), torch.Generator().manual_seed(1)
    assert torch.equal(module.scores(encoded, torch.rand(4, 1, 2, 3)), module.network(images).fused)
    module.loss(Batch(images, labels), generator).backward()  # through the encoders, which keep no gradient
    through = {name: p.grad.clone() for name, p in module.network.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    module.loss(Batch(encoded, labels), generator).backward()
    for name, p in module.network.named_parameters():
        assert (p.grad is None) == (name not in through) and (p.grad is None or torch.equal(p.grad, through[name]))
    touched = {name for name, p in module.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == names
    after = full_state(module)
    assert all(np.array_equal(after[name], state[name]) for name in state if "encoder." in name)


def test_prior_starts_from_the_guidance_where_asked():
    own, _ = diffusion(spec_with())
    shared, guidance = diffusion(spec_with(prior_init="guidance"))
    name = next(n for n in guidance if n.startswith("global_encoder") and guidance[n].ndim == 4)
    inside = f"prior.{name}"
    assert np.array_equal(full_state(shared)[inside], guidance[name])
    assert not np.array_equal(full_state(own)[inside], guidance[name])


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("stage", ["guidance", "diffusion", "plain"])
def test_loss_is_finite_and_reaches_every_exchanged_parameter(stage, task):
    spec = replace(spec_with(), task=task)
    module = diffusion(spec)[0] if stage == "diffusion" else build_module(spec, stage)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.tensor([0, 1, 2, 0])
    if task == "multilabel":
        labels = torch.nn.functional.one_hot(labels, 3).float()
    module.train()
    loss = module.loss(Batch(module.inputs(images), labels), generator)
    loss.backward()
    assert torch.isfinite(loss)
    parameters = dict(module.network.named_parameters())
    reached = {n for n, k in exchanged(module).items() if k == "parameter" and parameters[n].grad is not None}
    assert reached == {n for n, k in exchanged(module).items() if k == "parameter"}


def test_more_draws_estimate_the_same_loss_with_less_spread():
    spec = spec_with("frozen", norm="group")
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])

    def losses(draws):
        changed = replace(spec, stages=replace(spec.stages, diffusion=replace(spec.stages.diffusion, draws=draws)))
        module, _ = diffusion(changed)
        module.eval()
        with torch.no_grad():
            batch = Batch(module.inputs(images), labels)
            return torch.stack([module.loss(batch, torch.Generator().manual_seed(n)) for n in range(60)])

    one, many = losses(1), losses(16)
    assert many.std() < 0.5 * one.std()
    assert many.mean().item() == pytest.approx(one.mean().item(), rel=0.1)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_scores_are_the_logarithm_of_the_mean_over_the_starts(task, monkeypatch):
    monkeypatch.setattr(stages, "LEAST", 0.4)  # an untrained network's means are cut then, some of them
    module, _ = diffusion(spec_with("frozen", norm="group", task=task))
    module.eval()
    with torch.no_grad():
        features = module.inputs(torch.randn(3, 3, 32, 32))
        starts = torch.rand(3, 5, 2, 3)
        together = module.scores(features, starts)
        apart = [module.network.sample(features, starts[:, n, 0], starts[:, n, 1]).mean for n in range(5)]
    mean = torch.stack(apart).mean(0)
    assert 0 < (mean < 0.4).float().mean() < 1
    p = mean.clamp(0.4, 0.6 if task == "multilabel" else None)
    wanted = torch.log(p / (1 - p)) if task == "multilabel" else p.log()
    torch.testing.assert_close(together, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_blended_stage_scores_as_the_sampler_and_as_its_guidance_network(task):
    spec = spec_with("frozen", norm="group", task=task)
    alone, state = diffusion(spec)
    blended = replace(spec, stages=replace(spec.stages, diffusion=replace(spec.stages.diffusion, blend=True)))
    both, other = diffusion(blended)
    assert not alone.blended and both.blended and all(np.array_equal(state[name], other[name]) for name in state)
    images, starts = torch.randn(3, 3, 32, 32), torch.rand(3, 5, 2, 3)
    with torch.no_grad():
        scores = both.eval().scores(both.inputs(images), starts)
        assert torch.equal(scores[:, 0], alone.eval().scores(alone.inputs(images), starts))
        assert torch.equal(scores[:, 1], alone.network.guidance(images).fused)


def test_a_state_that_does_not_fit_names_what_is_wrong():
    spec = spec_with()
    state = initial_state(spec, "plain")
    network = build_module(spec, "plain").network
    name = next(iter(state))
    with pytest.raises(ModelFileError, match="1 tensors missing"):
        load_state(network, {n: v for n, v in state.items() if n != name})
    with pytest.raises(ModelFileError, match=r"1 unknown \(intruder\)"):
        load_state(network, {**state, "intruder": np.zeros(1, np.float32)})
    with pytest.raises(ModelFileError, match="1 of another shape"):
        load_state(network, {**state, name: np.zeros((1, 2, 3, 4, 5), np.float32)})
    with pytest.raises(ModelFileError, match="needs a trained guidance"):
        initial_state(spec, "diffusion")


def test_set_tensors_overwrites_a_subset():
    network = build_module(spec_with(), "plain").network
    name = next(n for n, _ in network.named_parameters())
    value = np.full(tuple(network.state_dict()[name].shape), 7.0, np.float32)
    set_tensors(network, {name: value})
    assert (network.state_dict()[name] == 7.0).all()


def test_a_module_used_again_holds_nothing_of_its_earlier_use():
    spec = spec_with()
    first_state, second_state = initial_state(spec, "plain"), initial_state(replace(spec, seed=9), "plain")
    first = loaded_module(spec, "plain", first_state)
    first.train()
    batch = Batch(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    first.loss(batch, torch.Generator()).backward()
    again = loaded_module(spec, "plain", second_state)
    assert again is first
    assert all(np.array_equal(full_state(again)[n], v) for n, v in second_state.items())
    assert all(p.grad is None for p in again.parameters())
    assert loaded_module(spec, "guidance", initial_state(spec, "guidance")) is not first
