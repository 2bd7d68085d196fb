"""A residual head's mean in one evaluation, and a classifier in the head's place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ConfigError
from fed_diffmic.models.checks import check_architecture
from fed_diffmic.models.diffmic import DiffMIC, build_diffmic
from fed_diffmic.models.guidance import guidance_cells

Build = Callable[..., ModelConfig]
C = 5


def model(tiny: Build, **changes: object) -> DiffMIC:
    torch.manual_seed(0)
    return build_diffmic(tiny(norm="group", encoder_norm="group", **changes), C).eval()


def starts() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, C), torch.rand(2, C)


def test_a_fresh_heads_mean_is_what_the_guidance_network_says(tiny: Build) -> None:
    """To the little that the last timestep still knows of the label (``abar`` is 4e-5)."""
    network = model(tiny, denoiser="residual", sampling="mean")
    features = network.features(torch.randn(2, 3, 64, 64))
    says = torch.softmax(guidance_cells(features.y_global, features.y_local, network.regions), dim=2)
    assert (network.sample_cells(features, *starts()) - says).abs().max() < 1e-4


def test_it_is_the_estimate_at_the_last_timestep_whatever_the_start(tiny: Build) -> None:
    network = model(tiny, denoiser="residual", sampling="mean")
    torch.nn.init.normal_(network.denoiser.head.weight, std=0.3)
    features = network.features(torch.randn(2, 3, 64, 64))
    found = network.sample(features, *starts())
    assert torch.equal(found.mean, network.sample(features, *starts()).mean)
    prior, guidance = network.condition(features)
    t = torch.full((2, network.regions, network.regions), network.timesteps - 1)
    noise = network.noise(guidance, torch.zeros_like(guidance), t, prior)
    a = float(network.alphas_cumprod[-1])
    by_hand = (-((1 - a) ** 0.5) * noise / a**0.5).clamp(-1, 1).mean(dim=(2, 3))
    assert (found.mean - by_hand).abs().max() < 1e-5
    says = torch.softmax(features.fused, dim=1)
    assert (found.mean - says).abs().max() > 1e-3  # the head does say something


@pytest.mark.parametrize("denoiser", ["noise", "classifier"])
def test_only_a_residual_head_can(tiny: Build, denoiser: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.sampling"):
        check_architecture(tiny(sampling="mean", denoiser=denoiser))


def test_a_classifier_has_the_heads_encoders_and_cannot_sample(tiny: Build) -> None:
    """What differs in numbers to train is the head alone, which is what a yardstick must hold still."""
    ensemble, full = model(tiny, denoiser="classifier"), model(tiny, denoiser="residual")
    assert {n: p.shape for n, p in ensemble.prior.named_parameters()} == {
        n: p.shape for n, p in full.prior.named_parameters()
    }
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ensemble, full)]
    heads = [sum(p.numel() for p in m.denoiser.parameters()) for m in (ensemble, full)]
    assert trained[1] - trained[0] == heads[1] - heads[0] > 0
    features = ensemble.features(torch.randn(2, 3, 64, 64))
    prior, _ = ensemble.condition(features)
    assert torch.equal(ensemble.classify(features), ensemble.denoiser.head(prior))
    with pytest.raises(RuntimeError, match="nothing to sample with"):
        ensemble.sample(features, *starts())
