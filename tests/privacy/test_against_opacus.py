"""Clipped sums of single images' gradients against Opacus: its hooks, its norms, its clipping."""

from __future__ import annotations

import copy

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from fed_diffmic.privacy.per_sample import MARGIN, Units, clipped_sum, norms, unit_gradients
from fed_diffmic.training.stages import ClassifierStage
from tests.toy import CLASSES, toy_spec

IMAGES, SIDE = 9, 8


def network() -> nn.Sequential:
    """A convolution, a norm over groups and a layer on all pixels: each with a rule of its own in Opacus."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, len(CLASSES))]
        return nn.Sequential(*parts).double().train()


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of unlike brightness, so that the norms of their gradients differ, and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return images * torch.linspace(0.1, 3, IMAGES)[:, None, None, None], torch.arange(IMAGES) % len(CLASSES)


def opacus_sum(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, bound: float) -> dict[str, torch.Tensor]:
    """What Opacus would add noise to."""
    wrapped = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    inner = torch.optim.SGD(wrapped.parameters(), lr=1.0)
    optimizer = DPOptimizer(
        inner, noise_multiplier=0.0, max_grad_norm=bound, expected_batch_size=None, loss_reduction="sum"
    )
    nn.functional.cross_entropy(wrapped(images), labels, reduction="sum").backward()
    optimizer.clip_and_accumulate()
    return {name.removeprefix("_module."): p.summed_grad for name, p in wrapped.named_parameters()}


@pytest.mark.parametrize("clipped", ["none", "some", "all"])
def test_clipped_sums_are_opacuss(clipped: str) -> None:
    plain, (images, labels) = network(), drawn()
    module = ClassifierStage(toy_spec(), "plain", plain)
    units = Units(images[:, None], labels[:, None], (), torch.ones(IMAGES, 1, dtype=torch.float64), None)
    gradients = unit_gradients(module, units)
    size = norms(gradients)
    assert size.max() > 1.5 * size.min()
    bound = {"none": 2 * size.max(), "some": size.median(), "all": size.min() / 2}[clipped].item()
    ours, theirs = clipped_sum(gradients, bound), opacus_sum(plain, images, labels, bound)
    assert ours.keys() == theirs.keys()
    # ours keeps below the bound by MARGIN of it, Opacus by 1e-6 of the norm's unit
    atol = {"none": 1e-12, "some": 2 * MARGIN * bound * IMAGES, "all": 1e-5 * bound}[clipped]
    for name, value in ours.items():
        expected = theirs[name] * ((1 - MARGIN) * (1 + 1e-6 / size.mean()) if clipped == "all" else 1)
        torch.testing.assert_close(value, expected, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
