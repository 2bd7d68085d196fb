"""Weights that let single images stand out are told from honest ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.compose import compose
from fed_diffmic.privacy.inversion.craft import imprint, mask_all_but_one_class
from fed_diffmic.privacy.inversion.linear import positions_of
from fed_diffmic.privacy.inversion.subject import Subject, make_subject
from fed_diffmic.privacy.isolation import Isolation, measure_isolation, own_rows, wrong_labels
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stages import build_module
from fed_diffmic.training.update import LocalRound

VIT = ("model.guidance_backbone=vit_tiny_patch16_224", "model.prior_init=own")


def subject_of(*settings: str, seed: int = 0, stage: str = "guidance") -> Subject:
    small = ["model=tiny", "stages=tiny", "model.image_side=32", "model.crop=16", *settings]
    return make_subject(compose(None, small), stage=stage, batch=16, seed=seed)


def measured(subject: Subject, seed: int = 0) -> Isolation:
    return measure_isolation(subject.module, subject.site, "cpu", np.random.default_rng(seed))


@pytest.mark.parametrize("settings", [(), VIT, ("model.encoder_norm=group",)], ids=["tiny", "vit", "group norm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_honest_random_weights_pass(settings: tuple[str, ...], seed: int) -> None:
    found = measured(subject_of(*settings, seed=seed))
    assert not found.found, str(found)


def test_nothing_of_the_module_is_changed() -> None:
    subject = subject_of()
    before = {name: value.clone() for name, value in subject.module.network.state_dict().items()}
    measured(subject)
    after = subject.module.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in subject.module.network.parameters())


@pytest.mark.parametrize("stage", ["guidance", "plain"])
def test_weights_that_let_one_class_through_are_found(stage: str) -> None:
    subject = subject_of(stage=stage)
    assert mask_all_but_one_class(subject)
    assert measured(subject).found


def test_an_imprint_is_found() -> None:
    subject = subject_of(*VIT)
    (prefix,) = positions_of(subject.gradient())
    assert imprint(subject, prefix) is not None
    found = measured(subject)
    assert found.found and found.own_rows > 0.5, str(found)


def test_silent_encoders_are_found() -> None:
    subject = subject_of()
    with torch.no_grad():
        for name, p in subject.module.network.named_parameters():
            if "saliency" in name or "classifier" in name:
                p.zero_()
    assert measured(subject).found


@pytest.mark.parametrize(("label", "classes", "expected"), [(0, 3, [1, 2]), (2, 3, [0, 1]), (1, 2, [0])])
def test_labels_that_an_image_does_not_have(label: int, classes: int, expected: list[int]) -> None:
    given: Any = np.int64(label)
    assert [n for n, _ in wrong_labels(given, classes)] == expected
    ((_, turned),) = wrong_labels(np.array([1, 0, 1]), 3)
    assert turned.tolist() == [[0, 1, 0]]


def test_one_image_with_rows_of_its_own_is_an_odd_image_and_several_are_an_imprint() -> None:
    energy = torch.full((16, 40), 0.01, dtype=torch.float64)
    energy[3, :20] = 100.0
    assert own_rows(energy) == 0.0
    for image in range(4, 9):
        energy[image, 20 + image] = 400.0
    assert own_rows(energy) > 0.9


def test_an_honest_network_passes_until_it_has_learnt_every_image() -> None:
    """In these rounds a single image had up to 0.93 of a tensor in rows of its own."""
    subject = subject_of()
    train = make_subject(compose(None, ["model=tiny", "stages=tiny"]), stage="guidance", batch=32).site
    cfg = replace(compose(None, ["model=tiny", "stages=tiny"]).stages.guidance, rounds=5, batch_size=16, epochs=3.0)
    spec = replace(
        subject.spec, stages=replace(subject.spec.stages, guidance=cfg), model=compose(None, ["model=tiny"]).model
    )
    module = build_module(spec, "guidance")
    for index in range(1, 6):
        found = [measure_isolation(module, train, "cpu", np.random.default_rng(c)) for c in range(2)]
        assert not any(one.found for one in found), [str(one) for one in found]
        result = local_update(module, train, build_algorithm(spec.strategy), LocalRound("a", index))
    assert result.metrics["loss"] < 0.2


@pytest.mark.parametrize("draws", [1, 8])
def test_a_timestep_table_is_not_taken_for_an_imprint(draws: int) -> None:
    """Each of its rows is reached by one draw, whatever the weights: with a draw of its own each image had rows."""
    subject = subject_of()
    cfg = replace(subject.spec.stages.diffusion, draws=draws)
    spec = replace(subject.spec, stages=replace(subject.spec.stages, diffusion=cfg))
    module = build_module(spec, "diffusion")
    for seed in range(3):
        found = measure_isolation(module, subject.site, "cpu", np.random.default_rng(seed))
        assert not found.found, str(found)
