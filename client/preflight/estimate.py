"""How long a round will take here, and in how much memory: measured on the site's own images with its own device.

The local update and the evaluation are the ones that a round runs (:mod:`fed_diffmic.training`); only their length
is cut, and what was measured is scaled to what a round asks for.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.training.evaluation import evaluate_scores, predict_scores
from fed_diffmic.training.features import FeatureStore, all_features
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import build_module, exchanged
from fed_diffmic.training.update import LocalRound

_FEW_STEPS = 2
_LEAST_IMAGES = 64


@dataclass(frozen=True)
class StageEstimate:
    """What a round of one stage takes at this site, without the way to the coordinator and waiting for others.

    Attributes:
        stage: ``guidance``, ``diffusion`` or ``plain``.
        steps: optimizer steps of a local update.
        train_s: seconds of a local update.
        evaluate_s: seconds of scoring the validation images.
        first_s: seconds that the stage's first round takes beyond these (features computed once).
        update_bytes: of the tensors that cross each round, in each direction.
        base_bytes: of what crosses once at the start of the stage.
        peak_bytes: of memory at the most (GPU: of its own; else of the whole process).
    """

    stage: str
    steps: int
    train_s: float
    evaluate_s: float
    first_s: float
    update_bytes: int
    base_bytes: int
    peak_bytes: int

    @property
    def round_s(self) -> float:
        """Seconds of a round that is not the stage's first."""
        return self.train_s + self.evaluate_s


def estimate_stage(
    spec: RunSpec,
    stage: str,
    data: SiteData,
    device: str,
    budget_s: float = 4.0,
    clock: Callable[[], float] = time.perf_counter,
) -> StageEstimate:
    """Run real steps and scale.

    Args:
        spec: of the run that is expected; weights are random, which does not change the time.
        stage: which.
        data: of the site; at least one training image.
        device: where.
        budget_s: about how long to measure steps (two are always made).
        clock: seconds.

    Raises:
        RuntimeError, MemoryError: the machine cannot do it.
    """
    cfg = spec.stage(stage)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module(spec, stage)
    train, val = data.train, data.val
    steps = cfg.steps or max(1, round(cfg.epochs * math.ceil(len(train) / cfg.batch_size)))
    store, first_s = FeatureStore(), 0.0
    if module.features_once:
        module.to(device)
        part = _part(train, cfg.batch_size)
        all_features(module, part, device)  # warm
        first_s = _seconds(lambda: all_features(module, part, device, store, "train"), device, clock)
        first_s *= (len(train) + len(val)) / len(part)
        train = part
    _update(module, train, device, 1, store)  # warm: kernels are chosen, memory is taken
    few = _seconds(lambda: _update(module, train, device, _FEW_STEPS, store), device, clock)
    more = max(_FEW_STEPS, min(steps, int(budget_s / few * _FEW_STEPS)))
    many = _seconds(lambda: _update(module, train, device, more, store), device, clock)
    each = (many - few) / (more - _FEW_STEPS) if more >= 3 * _FEW_STEPS else many / more
    fixed = max(0.0, many - more * each)
    state = module.network.state_dict()
    update = sum(state[name].numel() * state[name].element_size() for name in exchanged(module))
    return StageEstimate(
        stage=stage,
        steps=steps,
        train_s=fixed + max(each, 0.0) * steps,
        evaluate_s=_evaluation_seconds(module, val, device, store, clock),
        first_s=first_s,
        update_bytes=update,
        base_bytes=sum(value.numel() * value.element_size() for value in state.values()),
        peak_bytes=_peak(device),
    )


def _part(examples: Examples, batch_size: int) -> Examples:
    """Some of the examples, so many that batches of them are as large as batches of all."""
    count = len(examples)
    batch = round(count / math.ceil(count / batch_size))
    return examples.subset(np.arange(min(count, batch * math.ceil(_LEAST_IMAGES / batch))))


def _update(module: StageModule, train: Examples, device: str, steps: int, store: FeatureStore) -> None:
    stages = module.spec.stages
    short: dict[str, Any] = {module.stage: replace(module.spec.stage(module.stage), steps=steps)}
    cut = replace(stages, **short)
    whole, module.spec = module.spec, replace(module.spec, stages=cut)
    try:
        at = LocalRound("preflight", 1, device, store=store, store_key="train")
        local_update(module, train, Algorithm(module.spec.strategy), at)
    finally:
        module.spec = whole


def _evaluation_seconds(
    module: StageModule, val: Examples, device: str, store: FeatureStore, clock: Callable[[], float]
) -> float:
    """Scores of some images, scaled; metrics over as many as there are."""
    if len(val) == 0:
        return 0.0
    part = val.subset(np.arange(min(len(val), _LEAST_IMAGES)))
    scores = predict_scores(module, part, device, store, "val")
    scoring = _seconds(lambda: predict_scores(module, part, device, store, "val"), device, clock)
    classes = module.spec.num_classes
    repeated = scores[np.arange(len(val)) % len(part)]
    prior = np.full(classes, 0.5 if module.spec.task == "multilabel" else 1 / classes)
    metrics = _seconds(lambda: evaluate_scores(repeated, val.labels, prior, module.spec.task), device, clock)
    return scoring * len(val) / len(part) + metrics


def _seconds(run: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return clock() - start


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
