from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.privacy.dp_sgd import Source, unit_members
from fed_diffmic.privacy.per_sample import MARGIN, clipped_sum, norms, summed, trained, unit_gradients
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.training.losses import label_prior, prior_offset
from fed_diffmic.training.stage import Batch
from tests.privacy.models import private_spec, random_examples, stage_module

PATIENTS = ["a", "a", "a", "b", "c", "c"]


def chunk(module, examples, unit, dtype=torch.float32, physical=16):
    privacy = PrivacyConfig(name="dp_sgd", unit=unit, max_images=2, physical_batch=physical)
    offset = prior_offset(label_prior(examples.labels, 3, module.spec.task), module.spec.task).to(dtype)
    source = Source(module.float(), examples, privacy, "s", 1, "cpu", offset)
    (units,) = source.chunks(unit_members(examples, unit), Randomness(1))
    module.to(dtype)
    return replace(units, **{f: cast(getattr(units, f), dtype) for f in ("inputs", "labels", "draws", "mask")})


def cast(value, dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return (
        type(value)(*(cast(v, dtype) for v in value))
        if hasattr(value, "_fields")
        else tuple(cast(v, dtype) for v in value)
    )


def one_at_a_time(module, units):
    """The plain twin: backpropagation of each unit's loss by itself, over its own images."""
    result = {name: [] for name in trained(module)}
    for u in range(len(units)):
        filled = units.mask[u] > 0
        own = lambda column, u=u, filled=filled: column[u][filled]  # noqa: E731
        images = isinstance(units.inputs, torch.Tensor)
        inputs = module.inputs(own(units.inputs)) if images else type(units.inputs)(*map(own, units.inputs))
        module.zero_grad(set_to_none=True)
        batch = Batch(inputs, own(units.labels), units.offset)
        module.losses(batch, tuple(own(d) for d in units.draws)).mean().backward()
        for name, p in trained(module).items():
            result[name].append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    return {name: torch.stack(values) for name, values in result.items()}


def worst(module, units, dtype):
    """Largest difference to the twin, over the tensor's largest value (float32) or itself."""
    ours, twin = unit_gradients(module, units), one_at_a_time(module, units)
    assert sorted(ours) == sorted(twin) == sorted(trained(module)) != []
    reached = 0
    difference = 0.0
    for name, value in ours.items():
        largest = twin[name].abs().max().item()
        reached += largest > 0
        scale = 1.0 if dtype == torch.float64 else max(largest, 1e-30)
        difference = max(difference, (value - twin[name]).abs().max().item() / scale)
    assert reached > 0.9 * len(ours)
    return difference


CASES = [
    ("tiny", "guidance", "train"),
    ("tiny", "diffusion", "train"),
    ("tiny", "diffusion", "frozen"),
    ("compact", "guidance", "train"),
    ("compact", "diffusion", "train"),
    ("tiny", "guidance", "frozen"),
]


@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize(("preset", "stage", "encoders"), CASES)
def test_unit_gradients_equal_one_at_a_time_backpropagation_in_float64(preset, stage, encoders, unit):
    spec = private_spec(preset, encoders=encoders)
    module = stage_module(spec, stage, torch.float64)
    examples = random_examples(
        spec.model.image_side, 4 if preset == "compact" else 6, groups=PATIENTS[: 4 if preset == "compact" else 6]
    )
    assert worst(module, chunk(module, examples, unit, torch.float64), torch.float64) <= 1e-9


@pytest.mark.parametrize(("preset", "stage", "encoders"), [CASES[0], CASES[1], CASES[3]])
def test_unit_gradients_equal_one_at_a_time_backpropagation_in_float32(preset, stage, encoders):
    spec = private_spec(preset, encoders=encoders)
    module = stage_module(spec, stage)
    examples = random_examples(spec.model.image_side, 4, groups=PATIENTS[:4])
    assert worst(module, chunk(module, examples, "patient"), torch.float32) <= 1e-5


def test_several_labels():
    spec = private_spec("tiny", task="multilabel")
    for stage in ("guidance", "diffusion"):
        module = stage_module(spec, stage, torch.float64)
        examples = random_examples(spec.model.image_side, 6, "multilabel", PATIENTS)
        assert worst(module, chunk(module, examples, "patient", torch.float64), torch.float64) <= 1e-9


@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("stage", ["guidance", "diffusion", "plain"])
def test_centred_features_too(stage, unit):
    spec = private_spec("tiny", encoders="frozen")
    module = stage_module(replace(spec, model=replace(spec.model, features="centred")), stage, torch.float64)
    for name, value in module.network.named_buffers():
        if name.endswith("centre.mean"):
            value.fill_(0.3)
    examples = random_examples(spec.model.image_side, 6, groups=PATIENTS)
    assert worst(module, chunk(module, examples, unit, torch.float64), torch.float64) <= 1e-9


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_residual_head_too(task):
    spec = private_spec("tiny", task=task)
    spec = replace(spec, model=replace(spec.model, denoiser="residual"))
    module = stage_module(spec, "diffusion", torch.float64)
    examples = random_examples(spec.model.image_side, 6, task, PATIENTS)
    assert worst(module, chunk(module, examples, "patient", torch.float64), torch.float64) <= 1e-9


def test_attention_runs_over_all_units_at_once(recwarn):
    """A vision transformer's gradients equal the twin's, and torch does not say that it fell back to a loop."""
    spec = private_spec("tiny")
    spec = replace(spec, model=replace(spec.model, image_side=160, prior_init="own", prior_backbone="test_vit"))
    module = stage_module(spec, "diffusion", torch.float64)
    examples = random_examples(160, 3, groups=PATIENTS[1:4])
    assert worst(module, chunk(module, examples, "patient", torch.float64), torch.float64) <= 1e-9
    assert [str(w.message) for w in recwarn if "batching rule" in str(w.message)] == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_the_papers_network_too(stage):
    spec = private_spec("paper")
    module = stage_module(spec, stage, torch.float64)  # in single precision its depth alone costs three digits
    examples = random_examples(spec.model.image_side, 3, groups=PATIENTS[1:4])
    assert worst(module, chunk(module, examples, "patient", torch.float64), torch.float64) <= 1e-9


def test_a_crop_or_a_draw_is_no_unit():
    """As many gradients as patients, whatever they have inside."""
    spec = private_spec("tiny", draws=5)
    module = stage_module(spec, "diffusion")
    units = chunk(module, random_examples(spec.model.image_side, 6, groups=PATIENTS), "patient")
    assert len(units) == 3 and units.mask.sum(dim=1).tolist() == [2.0, 1.0, 2.0]  # three images, at most two taken
    assert {len(g) for g in unit_gradients(module, units).values()} == {3}


def test_no_unit_contributes_more_than_the_bound():
    gradients = {"a": torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), "b": torch.tensor([[12.0], [0.0], [0.0]])}
    assert norms(gradients).tolist() == pytest.approx([13.0, 0.5, 0.0])
    for unit in range(3):
        own = {name: value[unit : unit + 1] for name, value in gradients.items()}
        part = clipped_sum(own, 1.0)
        size = sum(v.double().square().sum() for v in part.values()).sqrt().item()
        assert size <= 1.0 and size == pytest.approx(min(norms(own).item(), 1.0), rel=2 * MARGIN)
    together = clipped_sum(gradients, 1.0)
    assert together["a"].tolist() == pytest.approx([3 / 13 + 0.3, 4 / 13 + 0.4], rel=1e-5)


def test_clipping_holds_in_float32_for_any_gradient():
    rng = np.random.default_rng(0)
    for scale in (1e-6, 1.0, 1e6):
        gradients = {"w": torch.from_numpy(rng.normal(size=(50, 4001)).astype(np.float32) * scale)}
        for unit in range(50):
            part = clipped_sum({"w": gradients["w"][unit : unit + 1]}, 0.5)["w"]
            assert part.double().norm().item() <= 0.5


def test_clipping_holds_in_float32_for_tensors_larger_than_any_of_the_network():
    rng = np.random.default_rng(0)
    for power in (1, 3):  # heavy tails are where a sum in single precision loses most
        value = torch.from_numpy((rng.normal(size=(2, 6_000_000)) ** power).astype(np.float32))
        assert norms({"w": value}).tolist() == pytest.approx(value.double().norm(dim=1).tolist(), rel=MARGIN / 10)
        for unit in range(2):
            assert clipped_sum({"w": value[unit : unit + 1]}, 0.5)["w"].double().norm().item() <= 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_unit_contributes_nothing_and_the_others_as_before(bad):
    gradients = {"w": torch.tensor([[bad, 1.0], [0.3, 0.4]])}
    assert clipped_sum(gradients, 1.0)["w"].tolist() == pytest.approx([0.3, 0.4])


def test_no_chunk_is_a_sum_of_zero():
    module = stage_module(private_spec("tiny"), "guidance")
    total = summed(module, iter(()), 1.0)
    assert sorted(total) == sorted(trained(module)) and all((value == 0).all() for value in total.values())


def test_encoders_that_are_frozen_run_outside_of_what_is_differentiated():
    """The same gradients as with the images inside, where the encoders run unit by unit."""
    spec = private_spec("tiny", encoders="frozen")
    module = stage_module(spec, "guidance", torch.float64)
    examples = random_examples(spec.model.image_side, 6, groups=PATIENTS)
    apart = chunk(module, examples, "patient", torch.float64)
    assert not isinstance(apart.inputs, torch.Tensor)
    type(module).inputs_apart = False
    try:
        inside = chunk(module, examples, "patient", torch.float64)
    finally:
        type(module).inputs_apart = True
    assert isinstance(inside.inputs, torch.Tensor)
    encoded = module.inputs(inside.inputs.flatten(0, 1))
    apart = replace(apart, inputs=type(encoded)(*(column.unflatten(0, inside.mask.shape) for column in encoded)))
    ours, twin = unit_gradients(module, apart), unit_gradients(module, inside)
    assert ours.keys() == twin.keys() != set()
    for name, value in ours.items():
        torch.testing.assert_close(value, twin[name], rtol=1e-9, atol=1e-12)
