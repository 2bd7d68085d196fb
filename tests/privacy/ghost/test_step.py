"""The stages' own networks: norms and clipped sums taken together against backpropagation of one unit at a time."""

from dataclasses import replace

import pytest
import torch

from fed_diffmic.privacy import per_sample
from fed_diffmic.privacy.ghost.proof import why_not
from fed_diffmic.privacy.ghost.step import clipped_sums, ghost_of
from fed_diffmic.privacy.per_sample import MARGIN, trained
from tests.privacy.models import private_spec, random_examples, stage_module
from tests.privacy.test_per_sample import PATIENTS, chunk, one_at_a_time


def largest(module, units, bound=0.05):
    """Largest relative differences to the twin: of norms, and of the clipped sum over its tensor's largest value."""
    assert why_not(module, units) == ""
    twin = one_at_a_time(module, units)
    module.zero_grad(set_to_none=True)
    norms = torch.stack([v.double().flatten(1).square().sum(dim=1) for v in twin.values()]).sum(dim=0).sqrt()
    assert (norms > bound).any()
    found = ghost_of(module, units).norms
    factors = (bound * (1 - MARGIN) / norms).clamp_max(1.0)
    sums = dict(clipped_sums(module, units, bound))
    assert sorted(sums) == sorted(trained(module))
    differences = []
    for name, value in twin.items():
        want = torch.tensordot(factors, value.double(), dims=1)
        differences.append(((sums[name] - want).abs().max() / want.abs().max().clamp_min(1e-30)).item())
    assert all(p.grad is None for p in module.parameters())
    return ((found - norms) / norms).abs().max().item(), max(differences)


def checked(spec, stage, unit, dtype, tolerance):
    module = stage_module(spec, stage, dtype)
    examples = random_examples(spec.model.image_side, 4, spec.task, PATIENTS[1:5])
    units = chunk(module, examples, unit, dtype)
    assert max(largest(module, units)) <= tolerance


@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("encoders", ["train", "frozen"])
@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_tiny_in_both_precisions(stage, encoders, unit):
    spec = private_spec("tiny", encoders=encoders)
    checked(spec, stage, unit, torch.float64, 1e-9)
    if unit == "patient":
        checked(spec, stage, unit, torch.float32, 1e-5)


@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_compact(stage):
    checked(private_spec("compact"), stage, "patient", torch.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_compact_in_double_precision(stage, unit):
    checked(private_spec("compact"), stage, unit, torch.float64, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_paper_at_a_small_side(stage):
    """The published backbones, ViT-S among them, with a narrow head."""
    spec = private_spec("paper")
    spec = replace(spec, model=replace(spec.model, image_side=112, latent=64, regions=3))
    checked(spec, stage, "patient", torch.float64, 1e-9)


@pytest.mark.parametrize(("kind", "task"), [("residual", "multilabel"), ("classifier", "multiclass")])
def test_other_heads_and_tasks(kind, task):
    spec = private_spec("tiny", task=task)
    # The loss itself is in float32 whatever the network is, and divides by small numbers here.
    spec = replace(spec, model=replace(spec.model, denoiser=kind))
    checked(spec, "diffusion", "patient", torch.float64, 1e-6 if kind == "residual" else 1e-9)


def test_a_vision_transformer():
    spec = private_spec("tiny")
    spec = replace(spec, model=replace(spec.model, image_side=160, prior_init="own", prior_backbone="test_vit"))
    checked(spec, "diffusion", "patient", torch.float64, 1e-9)


def test_chunks_of_any_size_give_the_same_sum():
    spec = private_spec("tiny")
    module = stage_module(spec, "guidance", torch.float64)
    examples = random_examples(spec.model.image_side, 6, groups=PATIENTS)
    units = chunk(module, examples, "patient", torch.float64)
    whole = dict(clipped_sums(module, units, 0.1))
    slow = per_sample.clipped_sum(per_sample.unit_gradients(module, units), 0.1)
    for name, value in whole.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-9, atol=1e-12)
