"""What predictions of an experiment about the head are worth: metrics, and paired intervals over groups.

Every method is calibrated on its validation scores in the ordinary way (:mod:`fed_diffmic.training.calibration`: a
scale, a share of the prior and, where a method gives two scores, the share of each); nothing else is fitted.

**Risk and coverage.** AURC (Geifman and El-Yaniv 2017) is the mean, over ``k = 1..N``, of the share of wrong decisions
among the ``k`` images of lowest uncertainty; the decision is the most probable class. Images of one uncertainty are
taken in a random order, of which the expectation is computed. An uncertainty that is a coin has the error rate.

**Interval.** The seeds share their images. For macro AUROC each image's influence is averaged over the seeds and
DeLong's variance taken of it, for everything else groups are resampled, the same ones for every method and seed; the
variance of the seeds' own differences over their number is added
(:func:`simulations.experiments.folds.combined`). With one seed what another training would change is not in it.

Letters: ``N`` images, ``C`` classes, ``R`` resamples, ``J`` seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import calibration, uncertainty, weighted
from fed_diffmic.training.delong import macro_influence, standard_error
from fed_diffmic.training.metrics import Scored
from simulations.experiments.compare import Difference
from simulations.experiments.folds import balanced_accuracy, combined

RESAMPLES = 1000
AUROC = "auroc_macro"
HIGHER = (AUROC, "balanced_accuracy")
"""Metrics of which more is better; of all others less is."""
PLAIN = (*HIGHER, "nll", "brier", "ece")
AURC = "aurc"
Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Judged:
    """One method's predictions of one seed.

    Attributes:
        value: by metric; ``aurc/MEASURE`` by uncertainty, ``error``: share of wrong decisions.
        resampled: the same under each resample, ``(R,)``; none for macro AUROC.
        influence: ``(N,)`` of each image on macro AUROC.
        groups: ``(N,)``.
    """

    value: Mapping[str, float]
    resampled: Mapping[str, np.ndarray]
    influence: np.ndarray
    groups: np.ndarray


def alone(tensors: Tensors) -> Tensors:
    """Predictions of the head by itself, where the method mixes it with its guidance network."""
    return {**tensors, "scores": tensors["scores"][:, 0]}


def calibrated(val: Tensors, split: Tensors, task: str) -> tuple[np.ndarray, calibration.Calibration]:
    """Probabilities ``(N, C)`` of a split, calibrated on validation, and the calibration."""
    scores, labels, prior = val["scores"], val["labels"], val["prior"]
    sums = calibration.nll_sums(scores, labels, prior, task)
    fitted = calibration.choose(sums, len(scores), prior, task, blended=scores.ndim == 3)
    return calibration.probabilities(split["scores"], fitted), fitted


def aurc(unsure: np.ndarray, wrong: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the risk-coverage curve under each set of weights, ``(R,)``.

    Args:
        unsure: ``(N,)``; wrong: ``(N,)`` bool.
        weights: ``(N, R)`` how often each image occurs; none: once, ``R = 1``.
    """
    weights = np.ones((len(unsure), 1)) if weights is None else weights
    order = np.argsort(unsure, kind="stable")
    _, block = np.unique(unsure[order], return_inverse=True)
    w, bad = weights[order], wrong[order].astype(np.float64)[:, None]
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    held, failed = np.add.reduceat(w, starts), np.add.reduceat(w * bad, starts)  # (blocks, R)
    rate = np.divide(failed, held, out=np.zeros_like(held), where=held > 0)
    count = np.cumsum(w, axis=0)
    before_n, before_e = np.cumsum(held, axis=0) - held, np.cumsum(failed, axis=0) - failed
    errors = before_e[block] + (count - before_n[block]) * rate[block]
    risk = np.divide(errors, count, out=np.zeros_like(count), where=count > 0)
    return np.asarray((risk * w).sum(axis=0) / w.sum(axis=0))


def judge(val: Tensors, split: Tensors, task: str, decision: str, resamples: int | None = None) -> Judged:
    """All metrics of one method and seed on a split.

    Args:
        val, split: ``scores``, ``labels``, ``groups``, ``prior`` and ``doubt/MEASURE`` by image.
        task: multiclass, ordinal or multilabel.
        decision: of balanced accuracy (``stages.decision``).
        resamples: of groups; none: :data:`RESAMPLES`.
    """
    p, fitted = calibrated(val, split, task)
    labels, several = split["labels"], task == "multilabel"
    truth = labels > 0 if several else labels[:, None] == np.arange(p.shape[1])
    groups = np.unique(split["groups"], return_inverse=True)[1]
    rng = numpy_generator(0, "bootstrap", "head")
    drawn = weighted.resample_weights(groups, RESAMPLES if resamples is None else resamples, rng)
    weights = np.concatenate([np.ones((len(p), 1)), drawn], axis=1)
    # DeLong's variance needs two of either.
    classes = np.flatnonzero((truth.sum(axis=0) >= 2) & ((~truth).sum(axis=0) >= 2))
    area, influence = macro_influence(p, truth, classes.tolist())
    decided = calibration.decide(p, fitted, decision)
    hit = decided if several else decided[:, None] == np.arange(p.shape[1])
    probable = calibration.decide(p, fitted, "probability")
    wrong = uncertainty.wrong(probable, labels, task)
    found = {
        "balanced_accuracy": balanced_accuracy((hit == truth)[:, classes], truth[:, classes], weights, several),
        "nll": weighted.weighted_mean(_nll(p, truth, several), weights),
        "brier": weighted.weighted_mean(_brier(p, truth, several), weights),
        "ece": weighted.calibration_error(*Scored(p, probable, labels, groups, task).confidence, weights),
        "error": weighted.weighted_mean(wrong.astype(np.float64), weights),
    }
    for measure, unsure in doubts(p, split, task).items():
        found[f"{AURC}/{measure}"] = aurc(unsure, wrong, weights)
    value = {AUROC: area} | {name: float(values[0]) for name, values in found.items()}
    return Judged(value, {name: values[1:] for name, values in found.items()}, influence, split["groups"])


def doubts(p: np.ndarray, split: Tensors, task: str) -> dict[str, np.ndarray]:
    """Every measure of uncertainty that there is of a split, ``(N,)`` each."""
    said = {name.removeprefix("doubt/"): values for name, values in split.items() if name.startswith("doubt/")}
    return {"entropy": uncertainty.entropy(p, task)} | said


def _nll(p: np.ndarray, truth: np.ndarray, several: bool) -> np.ndarray:
    likely = np.where(truth, p, 1 - p) if several else np.where(truth, p, 1.0)
    return np.asarray(-np.log(np.maximum(likely, 1e-12)).sum(axis=1))


def _brier(p: np.ndarray, truth: np.ndarray, several: bool) -> np.ndarray:
    squares = (p - truth) ** 2
    return np.asarray(squares.mean(axis=1) if several else squares.sum(axis=1))


def gap(ours: Sequence[Judged], theirs: Sequence[Judged], metric: str, other: str | None = None) -> Difference | None:
    """One method minus another in a metric, paired by image and seed; none where either lacks it.

    Args:
        other: the other method's metric, where it is another one (AURC by its own best uncertainty).
    """
    other = other or metric
    if not all(metric in a.value and other in b.value for a, b in zip(ours, theirs, strict=True)):
        return None
    gaps = np.array([a.value[metric] - b.value[other] for a, b in zip(ours, theirs, strict=True)])
    groups = ours[0].groups
    if metric == AUROC:
        error = standard_error(
            np.mean([a.influence - b.influence for a, b in zip(ours, theirs, strict=True)], axis=0), groups
        )
    else:
        each = [a.resampled[metric] - b.resampled[other] for a, b in zip(ours, theirs, strict=True)]
        error = float(np.nanstd(np.mean(each, axis=0), ddof=1))
    return combined(gaps, error, len(np.unique(groups)) - 1)


def better(metric: str, found: Difference) -> str:
    """``better``, ``worse`` or ``not shown``: what the interval says of a metric."""
    if found.verdict == "not shown":
        return found.verdict
    return "better" if (found.verdict == "above") == (metric in HIGHER) else "worse"
