"""A model of a site's own, made from the finished global one on the site's own images; nothing leaves the site.

- :func:`fine_tuned`: a few more passes over the site's training images, stopped early by its validation images.
- :func:`fit_mixture`: the mean of the probabilities of the model that the site trained alone and of the global one,
  with the share of the first from the site's validation images. This is APFL in its simplest form (Deng, Kamani
  and Mahdavi 2020, "Adaptive personalized federated learning", section 3): there the models are mixed in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fed_diffmic.algorithms import Tensors
from fed_diffmic.algorithms.fedavg import FedAvg
from fed_diffmic.config.spec import STAGES, RunSpec
from fed_diffmic.data.site import SiteData
from fed_diffmic.files import tensors_digest
from fed_diffmic.models.backbones import Encoder
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import calibration
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.features import SHARED, feature_key
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stages import GUIDANCE_PREFIX, build_module, exchanged, full_state, load_state
from fed_diffmic.training.update import LocalRound, SiteMemory

MOST_PASSES = 20
PATIENCE = 3
LR_SCALE = 0.1
"""Fine-tuning takes a tenth of the stage's learning rate: the weights are good already."""
SHARES = 201
FOLDS = 5
LEAST = 1e-6


@dataclass(frozen=True)
class Personal:
    """A stage fine-tuned at a site.

    Attributes:
        state: full state of its network.
        fitted: calibration on the site's own validation images; none: nothing was better than what was to be beaten,
            which stays as it is, with its own calibration.
        passes: over the training images, up to the best.
    """

    state: Tensors
    fitted: Calibration | None
    passes: int


def fine_tuned(
    spec: RunSpec,
    stage: str,
    state: Tensors,
    data: SiteData,
    *,
    device: str = "cpu",
    heads_alone: bool = False,
    to_beat: Tensors | None = None,
) -> Personal:
    """Fine-tune one stage of a finished model on a site's training images.

    After each pass the mean negative log-likelihood of the validation images is taken (at its best calibration); after
    :data:`PATIENCE` passes without a better one it ends, and the best weights stay, which may be those to be beaten.

    Args:
        spec: of the run.
        stage: which.
        state: its full state.
        data: the site's; test images are not looked at.
        device: where to compute.
        heads_alone: the encoders stay as they are (FedPer's division, Arivazhagan et al. 2019, made afterwards).
        to_beat: full state that the result is held against, where that is not ``state``; ``state`` itself may win then.

    Raises:
        ModelFileError: a state is not of that stage.
        ValueError: the training diverged, or there are no training images.
    """
    cfg = replace(spec.stage(stage), schedule="constant", lr=spec.stage(stage).lr * LR_SCALE, steps=0, epochs=1.0)
    strategy = replace(spec.strategy, name="fedavg", keep_optimizer_state=True)
    changed: dict[str, Any] = {stage: cfg}
    spec = replace(spec, stages=replace(spec.stages, **changed), strategy=strategy)
    module = build_module(spec, stage)
    load_state(module.network, state, f"stage {stage}")
    if heads_alone:
        for encoder in (part for part in module.network.modules() if isinstance(part, Encoder)):
            encoder.freeze()  # their batch norms' statistics too
    prior, where = site_prior(spec, data), torch.device(device)
    names = exchanged(module)
    base = tensors_digest({name: value for name, value in full_state(module).items() if name not in names})
    keys = {split: feature_key(spec, stage, base, getattr(data, split)) for split in ("train", "val")}

    def score() -> np.ndarray:
        return predict_scores(module, data.val, where, SHARED, keys["val"])

    best, kept, passes = _loss(spec, score(), data, prior), None, 0
    if to_beat is not None:
        load_state(module.network, to_beat, f"stage {stage}")
        first = predict_scores(module, data.val, where)  # another network inside: none of the features that are stored
        load_state(module.network, state, f"stage {stage}")
        if best < (given := _loss(spec, first, data, prior)):
            kept = full_state(module)
        best = min(best, given)
    moments: Tensors = {}
    for index in range(1, MOST_PASSES + 1 if len(data.val) else 1):
        # From round 2: the first may only look for a centre of the features, which is found already.
        at = LocalRound(f"personal/{data.name}", index + 1, device, store=SHARED, store_key=keys["train"])
        result = local_update(module, data.train, FedAvg(strategy, cfg), at, SiteMemory(optimizer=moments))
        moments = result.optimizer_state or {}
        loss = _loss(spec, score(), data, prior)
        if loss < best:
            best, passes, kept = loss, index, full_state(module)
        elif index - passes >= PATIENCE:
            break
    if kept is None:
        return Personal(state if to_beat is None else to_beat, None, 0)
    load_state(module.network, kept, f"stage {stage}")
    scores = score()
    sums = calibration.nll_sums(scores, data.val.labels, prior, spec.task)
    fitted = calibration.choose(sums, len(data.val), prior, spec.task, blended=scores.ndim == 3)
    return Personal(kept, fitted, passes)


@dataclass(frozen=True)
class Tuned:
    """Every stage of a finished model fine-tuned at a site.

    Attributes:
        states, fitted: by stage; the last one has the fine-tuned guidance network inside.
        passes: over the training images, of all stages together; 0: nothing was better than the global model.
    """

    states: dict[str, Tensors]
    fitted: dict[str, Calibration]
    passes: int


def tune(
    spec: RunSpec,
    states: Mapping[str, Tensors],
    fitted: Mapping[str, Calibration],
    data: SiteData,
    *,
    device: str = "cpu",
    heads_alone: bool = False,
) -> Tuned:
    """:func:`fine_tuned` for each stage of a model, in order: the last over its guidance network, fine-tuned too.

    Where the last stage is not better than the global model's on the validation images, whatever became of its guidance
    network, the global model stays as a whole.

    Args:
        spec: of the run.
        states: full state of each stage as the site uses it, its own part included.
        fitted: the global model's calibration.
        data, device, heads_alone: as there.

    Raises:
        ModelFileError, ValueError: as there.
    """
    made, passes = Tuned({}, {}, 0), 0
    guidance: Tensors = {}
    for stage in [name for name in STAGES if name in states]:
        state, to_beat = dict(states[stage]), None
        if stage == "diffusion" and guidance:
            state, to_beat = with_guidance(state, guidance), state
        found = fine_tuned(spec, stage, state, data, device=device, heads_alone=heads_alone, to_beat=to_beat)
        if to_beat is not None and found.fitted is None:
            told = [*made.states, stage]
            return Tuned({name: dict(states[name]) for name in told}, {name: fitted[name] for name in told}, 0)
        passes += found.passes
        if stage == "guidance" and found.passes:
            guidance = found.state
        made.states[stage], made.fitted[stage] = found.state, found.fitted or fitted[stage]
    return replace(made, passes=passes)


def with_guidance(state: Tensors, guidance: Tensors) -> Tensors:
    """The state of stage ``diffusion`` with another guidance network inside."""
    return {**state, **{GUIDANCE_PREFIX + name: value for name, value in guidance.items()}}


def site_prior(spec: RunSpec, data: SiteData) -> np.ndarray:
    """``(C,)`` share of each class among the site's own training images, none impossible."""
    labels = np.asarray(data.train.labels)
    several = spec.task == "multilabel"
    counts = labels.sum(axis=0) if several else np.bincount(labels.astype(np.int64), minlength=spec.num_classes)
    return calibration.class_prior(counts, len(labels), spec.task)


def _loss(spec: RunSpec, scores: np.ndarray, data: SiteData, prior: np.ndarray) -> float:
    if not len(scores):
        return float("inf")
    return float(calibration.nll_sums(scores, data.val.labels, prior, spec.task).min() / len(scores))


def at_prior(probabilities: np.ndarray, before: np.ndarray, after: np.ndarray, *, several: bool) -> np.ndarray:
    """Probabilities as they would be where classes are as frequent as ``after`` says, all else alike.

    The rule of Bayes (Saerens, Latinne and Decaestecker 2002, section 2). A global model's probabilities are those of
    the consortium's mix of classes; before it is weighed against a site's own model it must speak of the same patients.

    Args:
        probabilities: ``(N, C)`` where classes are as frequent as ``before``.
        before, after: ``(C,)`` within (0, 1).
        several: an image may have several labels.
    """
    p = np.clip(probabilities, LEAST**2, 1 - LEAST**2)
    if several:
        odds = p / (1 - p) * (after / (1 - after)) / (before / (1 - before))
        return np.asarray(odds / (1 + odds))
    moved = p * (after / before)
    return np.asarray(moved / moved.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Mixture:
    """How much of a site's own model goes into the mixture.

    Attributes:
        share: of the site's own model's probabilities, 0 to 1; the rest is the global model's.
        shares: found without each fold of the validation images.
        losses: mean negative log-likelihood on the validation images, nats: of the global model, of the own one, and of
            the mixture where each image's share was found without it.
    """

    share: float
    shares: tuple[float, ...]
    losses: tuple[float, float, float]


def fit_mixture(own: np.ndarray, shared: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Mixture:
    """The share of a site's own model that its validation images speak for: :func:`mean_share` of all of them.

    How the mixture does on images that had no say in its share is found by dealing the images into :data:`FOLDS` parts
    by group; for each part the share is found on the others.

    Args:
        own, shared: ``(N, C)`` calibrated probabilities of the site's own and of the global model, both for the site's
            mix of classes (:func:`at_prior`).
        labels: ``(N,)`` class index, or ``(N, C)`` 0/1 for several labels.
        groups: ``(N,)`` of each image.
        seed: of the parts.

    Raises:
        ValueError: no image, or shapes that do not fit.
    """
    own, shared, labels = (np.asarray(x, dtype=np.float64) for x in (own, shared, labels))
    if not len(labels) or own.shape != shared.shape or len(own) != len(labels):
        raise ValueError(f"cannot mix {own.shape} and {shared.shape} probabilities of {len(labels)} images")
    losses = np.stack([image_losses(w * own + (1 - w) * shared, labels) for w in np.linspace(0.0, 1.0, SHARES)])
    names, index = np.unique(groups, return_inverse=True)
    parts = min(FOLDS, len(names))
    fold = (numpy_generator(seed, "mixture").permutation(len(names)) % parts)[index]
    shares = tuple(mean_share(losses[:, fold != k], index[fold != k]) for k in range(parts))
    each = np.array(shares)[fold][:, None]
    outside = image_losses(each * own + (1 - each) * shared, labels)
    means = (float(losses[0].mean()), float(losses[-1].mean()), float(outside.mean()))
    return Mixture(mean_share(losses, index), shares, means)


def mean_share(losses: np.ndarray, groups: np.ndarray) -> float:
    """Mean of the share's posterior under a uniform prior; without an image one half.

    The likelihood of a share is that of the labels under its mixture. A mixture at the posterior mean is the posterior
    predictive distribution itself, since a mixture is linear in its share; predicting image after image so is at most
    ``log(N + 1)`` nats in all behind the best fixed share in hindsight (Cover and Ordentlich 1996, "Universal
    portfolios with side information", theorem 1: two assets, uniform weights). The share of the least loss promises
    nothing of that kind: of a site with few images it is mostly 0 or 1, and the site's own model, whose round, rate and
    optimizer were chosen on the same images, then wins by having been chosen (``benchmarks/shares.py`` compares).
    Images of one group are no independent witnesses: together they count as one image.

    Args:
        losses: ``(S, N)`` negative log-likelihood of each image at ``S`` shares evenly from 0 to 1, nats.
        groups: ``(N,)`` of each image.
    """
    if not losses.shape[1]:
        return 0.5
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    total = (losses / sizes[index]).sum(axis=1)
    # The trapezoidal rule: the two ends count half.
    weights = np.exp(total.min() - total) * np.concatenate([[0.5], np.ones(len(total) - 2), [0.5]])
    return float(weights @ np.linspace(0.0, 1.0, len(total)) / weights.sum())


def image_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``(N,)`` negative log-likelihood of each image, nats (several labels: their sum)."""
    p = np.clip(probabilities, LEAST, 1 - LEAST)
    if np.ndim(labels) == 2:
        return np.asarray(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=1))
    return np.asarray(-np.log(p[np.arange(len(p)), np.asarray(labels, dtype=np.int64)]))
