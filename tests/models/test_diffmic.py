"""The whole network: what trains, what stays frozen, and the sampler against its plain twin."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ConfigError
from fed_diffmic.models.diffmic import DiffMIC, Features, build_diffmic, build_guidance, encoder_parameters
from fed_diffmic.models.diffusion import alphas_cumprod, diffusion_loss, forward_diffusion
from fed_diffmic.models.guidance import GuidanceOutput
from fed_diffmic.models.normalisation import live_batch_norms

Build = Callable[..., ModelConfig]
C = 5


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def lively(model: DiffMIC) -> DiffMIC:
    """Give tables, gate and norms values as training would, so that no part of the sampler is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "timestep_table" in name or name.endswith("gate"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        model.train()
        for _ in range(3):
            features = model.features(torch.randn(4, 3, 64, 64))
            prior, guidance = model.condition(features)
            k = model.regions
            model.noise(guidance, torch.randn_like(guidance), torch.randint(model.timesteps, (4, k, k)), prior)
    return model.eval()


def plain_sampler(model: DiffMIC, x: Tensor, start_global: Tensor, start_local: Tensor, *, reencode: bool) -> Tensor:
    """Plain twin: every cell of the grid at every step; with ``reencode`` the encoders too, as the authors run them."""
    k, steps, timesteps = model.regions, model.sampling_steps, model.timesteps
    abar = alphas_cumprod(timesteps)
    y = torch.empty(x.shape[0], C, k, k)
    for i in range(k):
        for j in range(k):
            d = abs(i - j) / (k - 1)
            y[:, :, i, j] = (1 - d) * start_global + d * start_local
    features = model.features(x)
    prior, guidance = model.condition(features)
    stride = timesteps // steps
    for t in range((steps - 1) * stride, -1, -stride):
        if reencode:
            prior, guidance = model.condition(model.features(x))
        noise = model.noise(guidance, y, torch.full((x.shape[0], k, k), t), prior)
        a, previous = float(abar[t]), float(abar[t - stride]) if t >= stride else 1.0
        x0 = ((y - math.sqrt(1 - a) * noise) / math.sqrt(a)).clamp(-1, 1)
        y = math.sqrt(previous) * x0 + math.sqrt(1 - previous) * noise
    return y


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("regions", [2, 3, 6])
@pytest.mark.parametrize(("norm", "predicts"), [("batch", "noise"), ("group", "noise"), ("group", "residual")])
def test_the_sampler_equals_its_plain_twin(tiny: Build, norm: str, predicts: str, regions: int, steps: int) -> None:
    torch.manual_seed(0)
    model = lively(build_diffmic(tiny(norm=norm, denoiser=predicts, regions=regions, sampling_steps=steps), C))
    if predicts == "residual":
        torch.nn.init.normal_(model.denoiser.head.weight, std=0.3)  # which starts at 0
    x = images()
    start_global, start_local = torch.rand(3, C), torch.rand(3, C)
    with torch.no_grad():
        dense = plain_sampler(model, x, start_global, start_local, reencode=steps == 4)
        result = model.sample(model.features(x), start_global, start_local)
    assert (result.mean - dense.mean(dim=(2, 3))).abs().max() < 1e-5
    assert (result.spread - dense.flatten(2).std(dim=2, unbiased=False)).abs().max() < 1e-5
    assert dense.flatten(2).std(dim=2).max() > 1e-3  # the cells do differ


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_fresh_residual_head_samples_what_the_guidance_says(tiny: Build, task: str) -> None:
    torch.manual_seed(0)
    model = build_diffmic(tiny(norm="group", denoiser="residual", sampling_steps=10), C, task).eval()
    x = images(40)
    logits = 3 * torch.randn(40, C)
    features = model.features(x)._replace(y_global=logits, y_local=logits)
    guess = torch.sigmoid(logits) if task == "multilabel" else torch.softmax(logits, dim=1)
    start = torch.rand(2, 1, C).expand(2, 40, C)
    mean = model.sample(features, start[0], start[1]).mean
    for label in range(C):
        # The start is shared, so a class's order of images is the guidance network's, but for the most alike.
        ours, theirs = (scores[:, label].argsort().argsort().double() for scores in (mean, guess))
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.95
    unsure = build_diffmic(tiny(norm="group", sampling_steps=10), C, task).eval()
    other = unsure.sample(unsure.features(x)._replace(y_global=logits, y_local=logits), start[0], start[1]).mean
    assert (mean - guess).abs().mean() < 0.5 * (other - guess).abs().mean()


def test_sampling_needs_evaluation_mode(tiny: Build) -> None:
    model = build_diffmic(tiny(), C).eval()
    features = model.features(images())
    model.train()
    with pytest.raises(RuntimeError, match=r"batch norms are in training mode.*eval\(\)"):
        model.sample(features, torch.rand(3, C), torch.rand(3, C))


def test_an_images_prediction_does_not_depend_on_its_batch(tiny: Build) -> None:
    torch.manual_seed(0)
    model = lively(build_diffmic(tiny(), C))
    start_global, start_local = torch.rand(3, C), torch.rand(3, C)
    together = model.sample(model.features(images()), start_global, start_local)
    alone = model.sample(model.features(images()[1:2]), start_global[1:2], start_local[1:2])
    torch.testing.assert_close(together.mean[1:2], alone.mean, rtol=1e-4, atol=1e-5)


def training_loss(model: DiffMIC, x: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    features = model.features(x)
    prior, guidance = model.condition(features)
    y_t = forward_diffusion(labels, t, noise, model.alphas_cumprod)
    return diffusion_loss(model.noise(guidance, y_t, t, prior), noise, labels, features.fused, 10.0, 1.0, "multiclass")


def batch(model: DiffMIC, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    k = model.regions
    labels = torch.eye(C)[torch.randint(C, (n,), generator=g)]
    return (
        images(n),
        labels,
        torch.randint(model.timesteps, (n, k, k), generator=g),
        torch.randn(n, C, k, k, generator=g),
    )


def test_what_trains_and_what_does_not(tiny: Build) -> None:
    torch.manual_seed(0)
    model = build_diffmic(tiny(), C).train()
    for parameter in model.prior.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    before = {k: v.clone() for k, v in model.guidance.state_dict().items()}
    training_loss(model, *batch(model, 4)).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("guidance."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all()
    assert all(torch.equal(v, before[k]) for k, v in model.guidance.state_dict().items())
    assert live_batch_norms(model.guidance) == []
    assert live_batch_norms(model.prior)


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_no_batch_norm_is_live_where_privacy_needs_none(tiny: Build, norm: str) -> None:
    cfg = tiny(norm="group", encoder_norm=norm)
    assert live_batch_norms(build_diffmic(cfg, C).train()) == []
    assert live_batch_norms(build_guidance(cfg, C).train()) == []
    assert live_batch_norms(build_diffmic(tiny(norm="group"), C).train())  # encoders' own


def test_frozen_blocks_and_norms_stay_through_train_and_eval(tiny: Build) -> None:
    model = build_diffmic(tiny(encoder_norm="frozen", frozen_blocks=2), C)
    frozen = {name for name, p in model.prior.named_parameters() if not p.requires_grad}
    assert any("layer1" in name for name in frozen)
    model.train().eval().train()
    encoder = model.prior.global_encoder
    assert not encoder.net.layer1.training
    assert encoder.net.layer3.training
    assert live_batch_norms(model.prior.global_encoder) == []
    assert live_batch_norms(model.denoiser)


def test_frozen_encoders(tiny: Build) -> None:
    model = build_diffmic(tiny(), C)
    model.freeze_encoders()
    model.train()
    features = model.features(images())
    assert not features.global_pooled.requires_grad
    assert not features.region_pooled.requires_grad
    assert model.condition(features)[0].requires_grad
    assert encoder_parameters(model).isdisjoint(name for name, p in model.named_parameters() if p.requires_grad)


def test_prior_from_guidance(tiny: Build) -> None:
    torch.manual_seed(0)
    model = build_diffmic(tiny(prior_init="guidance"), C).eval()
    x = images()
    with torch.no_grad():
        before = model.prior.global_encoder(x)
        model.init_prior_from_guidance()
        expected = model.guidance.global_encoder(x)
        assert not torch.allclose(before, expected)
        assert torch.equal(model.prior.global_encoder(x), expected)
        crops = torch.randn(2, 3, 16, 16)
        assert torch.equal(model.prior.region_encoder(crops), model.guidance.local_encoder(crops))
    assert all(p.requires_grad for p in model.prior.parameters())
    other = build_diffmic(tiny(region_backbone="test_efficientnet"), C)
    with pytest.raises(ConfigError, match=r"model.prior_init=guidance .*test_efficientnet"):
        other.init_prior_from_guidance()


def test_state_dict_holds_weights_and_statistics_only(tiny: Build) -> None:
    model = build_diffmic(tiny(), C)
    names = set(model.state_dict())
    assert not {name for name in names if "alphas" in name or "cell_weights" in name or "pixel_of_cell" in name}
    guidance = build_guidance(tiny(), C)
    assert {f"guidance.{name}" for name in guidance.state_dict()} <= names
    model.guidance.load_state_dict(guidance.state_dict())


def test_encoder_parameters(tiny: Build) -> None:
    model = build_diffmic(tiny(), C)
    inside = encoder_parameters(model)
    assert inside <= {name for name, _ in model.named_parameters()}
    for part in (
        "guidance.global_encoder.",
        "guidance.local_encoder.",
        "prior.global_encoder.",
        "prior.region_encoder.",
    ):
        assert any(name.startswith(part) for name in inside)
    assert not any("denoiser" in n or "projection" in n or "saliency" in n or "head" in n for n in inside)


def test_the_same_seed_builds_the_same_network(tiny: Build) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_diffmic(tiny(), C).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_training_step_asks_for_no_value_on_the_host(tiny: Build) -> None:
    """The meta device has no values: any copy to the host or branch on data would raise."""
    with torch.device("meta"):
        model = build_diffmic(tiny(), C).train()
        k = model.regions
        loss = training_loss(
            model,
            torch.empty(4, 3, 64, 64),
            torch.empty(4, C),
            torch.zeros(4, k, k, dtype=torch.int64),
            torch.empty(4, C, k, k),
        )
        loss.backward()
        guidance: GuidanceOutput = build_guidance(tiny(), C).train()(torch.empty(4, 3, 64, 64))
        guidance.fused.sum().backward()
        features: Features = model.eval().features(torch.empty(4, 3, 64, 64))
        assert model.sample(features, torch.empty(4, C), torch.empty(4, C)).mean.shape == (4, C)


class _Loss(nn.Module):
    def __init__(self, model: DiffMIC) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return training_loss(self.model, x[None], labels[None], t[None], noise[None])


@pytest.mark.parametrize("encoder_norm", ["group", "frozen"])
def test_per_image_gradients_through_the_whole_model(tiny: Build, encoder_norm: str) -> None:
    """``vmap(grad)`` of the loss of one image equals backpropagation of one image at a time."""
    torch.manual_seed(0)
    model = build_diffmic(tiny(norm="group", encoder_norm=encoder_norm), C).double().train()
    loss = _Loss(model)
    trained = {k: v.detach() for k, v in loss.named_parameters() if v.requires_grad}
    fixed = {k: v.detach() for k, v in loss.named_parameters() if not v.requires_grad} | dict(loss.named_buffers())

    def one(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return functional_call(loss, (parameters, fixed), sample)

    x, labels, t, noise = (v.double() if v.is_floating_point() else v for v in batch(model, 3))
    together = vmap(grad(one), in_dims=(None, 0, 0, 0, 0))(trained, x, labels, t, noise)
    for n in range(3):
        model.zero_grad()
        loss(x[n], labels[n], t[n], noise[n]).backward()
        for name, parameter in loss.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                torch.testing.assert_close(together[name][n], parameter.grad, rtol=1e-6, atol=1e-9)
