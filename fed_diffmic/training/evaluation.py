"""Scores of a model on examples, and the figures that a site lets out."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import calibration
from fed_diffmic.training.features import CHUNK, FeatureStore, all_features, chunks, normalised_images, select
from fed_diffmic.training.metrics import Scored, figures, quick
from fed_diffmic.training.stage import StageModule


def start_draws(keys: np.ndarray, spec: RunSpec) -> np.ndarray:
    """The sampler's uniform starts for each image, ``(N, starts, 2, C)`` float32 in ``[0, 1)``.

    Drawn from (seed, image key) alone, or the same for every image (``model.sampling_start=shared``), so a prediction
    does not depend on what is predicted with it.
    """
    shape = (spec.model.sampling_starts, 2, spec.num_classes)
    names = ["shared"] * len(keys) if spec.model.sampling_start == "shared" else [int(key) for key in keys]
    draws = [numpy_generator(spec.seed, "start", name).random(shape, dtype=np.float32) for name in names]
    return np.stack(draws) if draws else np.zeros((0, *shape), np.float32)


@torch.no_grad()
def predict_scores(
    module: StageModule,
    examples: Examples,
    device: torch.device | str = "cpu",
    store: FeatureStore | None = None,
    key: Hashable = None,
) -> np.ndarray:
    """Scores ``(N, C)`` (a blended stage's: ``(N, 2, C)``) float64 in the order of the examples, in evaluation mode."""
    torch.set_num_threads(module.spec.threads)
    module.to(device).eval()
    spec = module.spec
    draws = start_draws(examples.keys, spec)
    starts = torch.from_numpy(draws).to(device)
    features = None
    if module.features_once and len(examples):
        features = all_features(module, examples, device, store, key)
    parts = []
    for index in chunks(len(examples), CHUNK):
        check_time()
        inputs = (
            select(features, index)
            if features is not None
            else module.inputs(normalised_images(module, examples, index, device))
        )
        parts.append(module.scores(inputs, starts[torch.from_numpy(index).to(device)]).float().cpu().numpy())
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, module.spec.num_classes))


@torch.no_grad()
def score_images(
    module: StageModule, images: torch.Tensor, keys: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Scores ``(n, C)`` (a blended stage's: ``(n, 2, C)``) float64 of a batch of decoded images, in evaluation mode.

    The steps are those of :func:`predict_scores`: the same images in batches of :data:`CHUNK`, in the same order, have
    the same scores bit for bit. In batches of another size they differ by rounding (a few units of the last place).

    Args:
        module: a stage with its state.
        images: ``(n, 3, H, H)`` uint8, ``n >= 1``.
        keys: ``(n,)`` each image's own number, for its starts of the sampler.
        device: where to compute.
    """
    torch.set_num_threads(module.spec.threads)
    module.to(device).eval()
    starts = torch.from_numpy(start_draws(keys, module.spec)).to(device)
    inputs = module.inputs(normalise(images.to(device), module.spec.mean, module.spec.std))
    return np.asarray(module.scores(inputs, starts).float().cpu().numpy(), dtype=np.float64)


def evaluate_scores(
    scores: np.ndarray, labels: np.ndarray, prior: np.ndarray, task: str, *, sums: bool = False
) -> dict[str, float]:
    """Figures of one site's split that may leave the site, as flat numbers.

    Args:
        scores: ``(N, C)`` or ``(N, 2, C)``.
        labels: ``(N,)`` or ``(N, C)``.
        prior: the consortium's class prior ``(C,)``.
        sums: also the calibration's sums of negative log-likelihood, ``nll/<i>/<j>``.

    Returns:
        ``num_examples``; ``loss``, the mean negative log-likelihood at the best point of the
        calibration grid; and each of ``auroc_macro``, ``balanced_accuracy`` that is defined here.
    """
    result = {"num_examples": float(len(scores))}
    if len(scores) == 0:
        return result
    table = calibration.nll_sums(scores, labels, prior, task)
    result["loss"] = float(table.min() / len(scores))
    best = calibration.choose(table, len(scores), prior, task, blended=scores.ndim == 3)
    probabilities = calibration.probabilities(scores, best)
    for name, value in quick(probabilities, labels, task).items():
        if value is not None:
            result[name] = float(value)
    if sums:
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                result[f"nll/{i}/{j}"] = float(value)
    return result


def judged(scores: np.ndarray, examples: Examples, fitted: calibration.Calibration, spec: RunSpec) -> Scored:
    """Calibrated probabilities of scores, and the decisions of the run's rule (``stages.decision``).

    Raises:
        ValueError: scores that are not finite or of another number of classes.
    """
    probabilities = calibration.probabilities(scores, fitted)
    decided = calibration.decide(probabilities, fitted, spec.stages.decision)
    return Scored(probabilities, decided, examples.labels, examples.groups, spec.task)


def figures_of(scored: Scored, spec: RunSpec, bootstrap: int) -> dict[str, Any]:
    """:func:`fed_diffmic.training.metrics.figures` with the run's task, classes and seed."""
    return figures(
        scored.probabilities,
        scored.decided,
        scored.labels,
        scored.groups,
        task=spec.task,
        classes=spec.classes,
        bootstrap=bootstrap,
        seed=spec.seed,
    )
