"""The estimate of a round against the round."""

import time
from dataclasses import replace

import numpy as np
import pytest

from client.preflight.estimate import estimate_stage
from client.preflight.trial import expected_spec
from client.source import SiteSource
from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.config.compose import compose
from fed_diffmic.training.evaluation import evaluate_scores, predict_scores
from fed_diffmic.training.features import FeatureStore
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stages import ClassifierStage, DiffusionStage, build_module
from fed_diffmic.training.update import LocalRound


def spec_and_data(site, **stage):
    tiny = compose(None, ["model=tiny", "stages=tiny"])
    data = SiteSource(site).read(tiny.model.image_side)
    stages = tiny.stages
    for name, values in stage.items():
        stages = replace(stages, **{name: replace(getattr(stages, name), **values)})
    return expected_spec(site, data.classes, data.task, tiny.model, stages), data


def real_round(spec, stage, data, store, clock=time.process_time):
    """Processor seconds (one thread: what else the machine does is left out) of a round as a site does it."""
    module = build_module(spec, stage)
    algorithm = Algorithm(spec.strategy)

    def one(index):
        at = LocalRound("north", index, store=store, store_key=(stage, "train"))
        local_update(module, data.train, algorithm, at)
        scores = predict_scores(module, data.val, "cpu", store, (stage, "val"))
        evaluate_scores(scores, data.val.labels, np.full(2, 0.5), spec.task)

    one(1)
    start = clock()
    one(2)
    return clock() - start


@pytest.fixture
def images_done(monkeypatch):
    """A clock that counts images trained on (three each) and scored (one each) instead of seconds."""
    done = [0.0]
    for kind in (ClassifierStage, DiffusionStage):

        def loss(self, batch, generator, original=kind.loss):
            done[0] += 3 * len(batch.labels)
            return original(self, batch, generator)

        def scores(self, inputs, starts, original=kind.scores):
            done[0] += len(starts)
            return original(self, inputs, starts)

        monkeypatch.setattr(kind, "loss", loss)
        monkeypatch.setattr(kind, "scores", scores)
    return lambda: done[0]


@pytest.mark.parametrize(("stage", "asked"), [("guidance", {"epochs": 5}), ("diffusion", {"epochs": 20})])
def test_a_round_does_what_was_estimated(site, stage, asked, images_done):
    spec, data = spec_and_data(site, **{stage: asked})
    estimate = estimate_stage(spec, stage, data, "cpu", budget_s=300, clock=images_done)
    took = real_round(spec, stage, data, FeatureStore(), images_done)
    assert took > 0
    assert estimate.round_s == pytest.approx(took, rel=0.05)
    assert estimate.steps == asked["epochs"] * 3


@pytest.mark.slow  # seconds, so that what else a machine does can fail it
@pytest.mark.parametrize(("stage", "asked"), [("guidance", {"epochs": 5}), ("diffusion", {"epochs": 20})])
def test_a_round_takes_what_was_estimated_within_half(site, stage, asked):
    spec, data = spec_and_data(site, **{stage: asked})
    estimate = estimate_stage(spec, stage, data, "cpu", budget_s=1.0, clock=time.process_time)
    took = real_round(spec, stage, data, FeatureStore())
    assert estimate.round_s / 1.5 < took < 1.5 * estimate.round_s, (estimate, took)
    assert estimate.steps == asked["epochs"] * 3
    assert estimate.update_bytes > 0 and estimate.base_bytes >= estimate.update_bytes
    assert estimate.peak_bytes > 10**8


def test_what_crosses_is_what_the_stage_trains(site):
    spec, data = spec_and_data(site, diffusion={"steps": 2})
    estimate = estimate_stage(spec, "diffusion", data, "cpu", budget_s=0.01)
    module = build_module(spec, "diffusion")
    trained = sum(4 * p.numel() for p in module.network.parameters() if p.requires_grad)
    assert estimate.update_bytes == trained
    assert estimate.base_bytes > trained
    assert estimate.steps == 2
    assert estimate.first_s > 0
