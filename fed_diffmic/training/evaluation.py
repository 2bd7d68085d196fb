"""Scores of a model on examples, and the metrics that a site lets out."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import calibration, uncertainty
from fed_diffmic.training.features import CHUNK, FeatureStore, all_features, chunks, normalised_images, select
from fed_diffmic.training.metrics import Scored, compute_metrics, quick
from fed_diffmic.training.stage import StageModule


def start_draws(keys: np.ndarray, spec: RunSpec) -> np.ndarray:
    """The sampler's uniform starts for each image, ``(N, starts, 2, C)`` float32 in ``[0, 1)``.

    Drawn from (seed, image key) alone, or the same for every image (``model.sampling_start=shared``), so a prediction
    does not depend on what is predicted with it.
    """
    shape = (spec.model.sampling_starts, 2, spec.num_classes)
    if spec.model.sampling_start == "shared":
        one = numpy_generator(spec.seed, "start", "shared").random(shape, dtype=np.float32)
        return np.repeat(one[np.newaxis], len(keys), axis=0)
    draws = [numpy_generator(spec.seed, "start", int(key)).random(shape, dtype=np.float32) for key in keys]
    return np.stack(draws) if draws else np.zeros((0, *shape), np.float32)


def _starts(module: StageModule, keys: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """:func:`start_draws` on the device; none for each image, ``(N, 0, 2, C)``, where the stage looks at none."""
    if not module.sampled:
        return torch.zeros(len(keys), 0, 2, module.spec.num_classes, device=device)
    return torch.from_numpy(start_draws(keys, module.spec)).to(device)


@torch.no_grad()
def predict_scores(
    module: StageModule,
    examples: Examples,
    device: torch.device | str = "cpu",
    store: FeatureStore | None = None,
    key: Hashable = None,
) -> np.ndarray:
    """Scores ``(N, C)`` (a blended stage's: ``(N, 2, C)``) float64 in the order of the examples, in evaluation mode."""
    parts = [array(module.scores(*said)) for said in _inputs(module, examples, device, store, key)]
    return np.concatenate(parts) if parts else np.zeros((0, module.spec.num_classes))


@torch.no_grad()
def predict_doubts(
    module: StageModule,
    examples: Examples,
    device: torch.device | str = "cpu",
    store: FeatureStore | None = None,
    key: Hashable = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The scores of :func:`predict_scores`, bit for bit, and the model's own doubts (:func:`doubts`), ``(N,)`` each."""
    parts = [doubts(module, *said) for said in _inputs(module, examples, device, store, key)]
    if not parts:
        return np.zeros((0, module.spec.num_classes)), {}
    names = parts[0][1]
    return np.concatenate([p[0] for p in parts]), {n: np.concatenate([p[1][n] for p in parts]) for n in names}


def _inputs(
    module: StageModule, examples: Examples, device: torch.device | str, store: FeatureStore | None, key: Hashable
) -> Iterator[tuple[Any, torch.Tensor]]:
    """A stage's inputs and the sampler's starts for the examples in order, :data:`CHUNK` at a time."""
    torch.set_num_threads(module.spec.threads)
    module.to(device).eval()
    starts = _starts(module, examples.keys, device)
    features = None
    if module.features_once and len(examples):
        features = all_features(module, examples, device, store, key)
    for index in chunks(len(examples), CHUNK):
        check_time()
        if features is not None:
            inputs = select(features, index)
        else:
            inputs = module.inputs(normalised_images(module, examples, index, device))
        yield inputs, starts[torch.from_numpy(index).to(device)]


@torch.no_grad()
def score_images(
    module: StageModule, images: torch.Tensor, keys: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores and doubts of a batch of decoded images, in evaluation mode, as :func:`predict_doubts` gives them.

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
    starts = _starts(module, keys, device)
    return doubts(module, module.inputs(normalise(images.to(device), module.spec.mean, module.spec.std)), starts)


def doubts(module: StageModule, inputs: Any, starts: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores of a batch, and what the model itself says of how unsure they are.

    Returns:
        scores as of :func:`predict_scores`; ``disagreement`` of head and guidance network and, with two starts or more,
        ``spread`` (:mod:`fed_diffmic.training.uncertainty`), ``(B,)`` each; neither where there is one opinion.
    """
    scores, samples, guidance = module.opinions(inputs, starts)
    if samples is None or guidance is None:
        return array(scores), {}
    several, logits = module.spec.task == "multilabel", array(guidance)
    each = np.clip(array(samples), 0.0, 1.0)
    mean = each.mean(axis=1)
    other = expit(logits) if several else softmax(logits, axis=1)
    own = mean if several else mean / np.maximum(mean.sum(axis=1, keepdims=True), 1e-12)
    said = {"disagreement": uncertainty.disagreement(own, other, module.spec.task)}
    return array(scores), said | ({"spread": uncertainty.spread(each)} if each.shape[1] > 1 else {})


def array(value: torch.Tensor) -> np.ndarray:
    """On the host, float64 of float32."""
    return np.asarray(value.float().cpu().numpy(), dtype=np.float64)


def evaluate_scores(
    scores: np.ndarray, labels: np.ndarray, prior: np.ndarray, task: str, *, sums: bool = False
) -> dict[str, float]:
    """Metrics of one site's split that may leave the site, as flat numbers.

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


def metrics_of(scored: Scored, spec: RunSpec, bootstrap: int) -> dict[str, Any]:
    """:func:`fed_diffmic.training.metrics.compute_metrics` with the run's task, classes and seed."""
    return compute_metrics(
        scored.probabilities,
        scored.decided,
        scored.labels,
        scored.groups,
        task=spec.task,
        classes=spec.classes,
        bootstrap=bootstrap,
        seed=spec.seed,
    )
