"""Metrics of merit of a set of predictions, with 95 % bootstrap intervals over groups.

What each figure means, and what may not be compared, is in docs/metrics.md. In short:

- A class without a single positive among the labels is *absent*: it has no figure of its own and is left out of every
  macro mean; ``classes`` of a figure names the classes that are in it. Absent is never counted as 0.
- Intervals are percentiles of a bootstrap that draws whole groups (patients, lesions) with replacement, because images
  of one group are not independent. A class that is present, but that a resample happens to miss, is left out of that
  resample's macro mean.
- Every value is a number or ``None`` (undefined); ``nan`` never leaves this module.

Letters: ``N`` images, ``C`` classes, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import weighted

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "auroc_macro",
    "auprc_macro",
    "kappa_quadratic",
    "brier",
    "ece",
)
PER_CLASS = ("f1", "auroc", "auprc", "sensitivity", "specificity")
MACRO_OF = {
    "balanced_accuracy": "recall",
    "f1_macro": "f1",
    "auroc_macro": "auroc",
    "auprc_macro": "auprc",
}
TASKS = ("multiclass", "ordinal", "multilabel")
# Below this share of resamples in which a figure is defined, its percentiles would describe lucky draws only.
DEFINED_SHARE = 0.5
_CELLS_AT_ONCE = 1_600_000  # images times resamples held in memory together

Replicates = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scored:
    """Predictions beside the truth, checked to fit together.

    Attributes:
        probabilities: ``(N, C)`` in [0, 1]; rows sum to 1 unless the task is multilabel.
        decided: ``(N,)`` class index, or ``(N, C)`` bool for multilabel.
        labels: ``(N,)`` class index, or ``(N, C)`` 0/1 for multilabel.
        groups: ``(N,)``: what must not be split (patient, lesion).
        task: multiclass, ordinal or multilabel.

    Raises:
        ValueError: shapes, task, classes or probabilities that cannot be.
    """

    probabilities: np.ndarray
    decided: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    task: str

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r} is not one of {', '.join(TASKS)}")
        p = np.asarray(self.probabilities, dtype=np.float64)
        if p.ndim != 2 or p.shape[1] < 1:
            raise ValueError(f"probabilities have shape {p.shape}; expected (N, C)")
        if not np.isfinite(p).all() or p.min(initial=0.0) < 0 or p.max(initial=0.0) > 1 + 1e-6:
            raise ValueError("probabilities must be finite and within [0, 1]")
        shape = p.shape if self.task == "multilabel" else p.shape[:1]
        kind = bool if self.task == "multilabel" else np.int64
        arrays = {"probabilities": p, "groups": np.asarray(self.groups)}
        for name in ("decided", "labels"):
            given = np.asarray(getattr(self, name))
            value = given.astype(kind)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}; expected {shape} for {self.task}")
            outside = kind is np.int64 and value.size and (value.min() < 0 or value.max() >= p.shape[1])
            if outside or not np.array_equal(value, given):
                raise ValueError(f"{name} holds a class that does not exist (C = {p.shape[1]})")
            arrays[name] = value
        if arrays["groups"].shape != p.shape[:1]:
            raise ValueError(f"groups has shape {arrays['groups'].shape}; expected {p.shape[:1]}")
        for name, value in arrays.items():
            object.__setattr__(self, name, value)

    @property
    def positives(self) -> np.ndarray:
        """``(C,)`` number of images that have each class."""
        if self.task == "multilabel":
            return np.asarray(self.labels.sum(axis=0), dtype=np.int64)
        return np.bincount(self.labels, minlength=self.probabilities.shape[1])

    @property
    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence and correctness, ``(N, 1)`` of the most probable class; multilabel ``(N, C)`` of every label."""
        if self.task == "multilabel":
            return self.probabilities, self.labels.astype(np.float64)
        top = self.probabilities.argmax(axis=1)
        return self.probabilities.max(axis=1, keepdims=True), (top == self.labels).astype(np.float64)[:, None]


def weighted_metrics(scored: Scored, weights: np.ndarray) -> Replicates:
    """Every figure under each set of sample weights.

    Args:
        weights: ``(N, R)``, whole numbers.

    Returns:
        Each of :data:`METRICS` as ``(R,)`` and each of :data:`PER_CLASS` (and ``recall``, what balanced accuracy
        averages) as ``(R, C)``; ``nan`` where undefined.
    """
    p, task = scored.probabilities, scored.task
    num_classes = p.shape[1]
    multilabel = task == "multilabel"
    truth = scored.labels if multilabel else np.eye(num_classes, dtype=bool)[scored.labels]
    total = weights.sum(axis=0)
    out: Replicates = {"kappa_quadratic": np.full(weights.shape[1], np.nan)}
    if multilabel:
        counts = weighted.label_counts(truth, scored.decided, weights)
        out["accuracy"] = weighted.divide((counts[0] + counts[3]).sum(axis=1), total * num_classes)
    else:
        table = weighted.confusion(scored.labels, scored.decided, num_classes, weights)
        counts = weighted.one_against_rest(table)
        out["accuracy"] = weighted.divide(counts[0].sum(axis=1), total)
        if task == "ordinal":
            out["kappa_quadratic"] = weighted.quadratic_kappa(table)
    tp, fp, fn, tn = counts
    out["sensitivity"] = weighted.divide(tp, tp + fn)
    out["specificity"] = weighted.divide(tn, tn + fp)
    # Of one label alone, recall would reward calling everything positive: multi-label averages both sides.
    out["recall"] = (out["sensitivity"] + out["specificity"]) / 2 if multilabel else out["sensitivity"]
    out["f1"] = np.where(tp + fn > 0, weighted.divide(2 * tp, 2 * tp + fp + fn), np.nan)
    ranked = [weighted.ranking(p[:, c], truth[:, c], weights) for c in range(num_classes)]
    out["auroc"] = np.stack([auroc for auroc, _ in ranked], axis=1)
    out["auprc"] = np.stack([average for _, average in ranked], axis=1)
    squared = (p - truth) ** 2
    out["brier"] = weighted.weighted_mean(squared.mean(axis=1) if multilabel else squared.sum(axis=1), weights)
    out["ece"] = weighted.calibration_error(*scored.confidence, weights)
    for macro, single in MACRO_OF.items():
        out[macro] = weighted.mean_of_defined(out[single])
    return out


def group_index(groups: np.ndarray) -> np.ndarray:
    """``(N,)`` index of each image's group, numbered as they first appear (so that names do not matter)."""
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[index]


def _chunks(scored: Scored, bootstrap: int, rng: np.random.Generator) -> Iterator[Replicates]:
    groups = group_index(scored.groups)
    at_once = max(1, _CELLS_AT_ONCE // len(groups))
    for start in range(0, bootstrap, at_once):
        weights = weighted.resample_weights(groups, min(at_once, bootstrap - start), rng)
        yield weighted_metrics(scored, weights)


def replicates(scored: Scored, bootstrap: int, rng: np.random.Generator) -> tuple[Replicates, Replicates]:
    """The metrics of the sample itself (R = 1) and of ``bootstrap`` resamples of its groups.

    The resamples depend on ``rng`` and on the groups alone: two models scored on the same images with equal ``rng``
    get the same resamples, so that their difference is a paired one. With fewer than two groups there is nothing to
    resample and the second is empty (R = 0).

    Raises:
        ValueError: no image at all.
    """
    if not len(scored.labels):
        raise ValueError("no image to measure")
    point = weighted_metrics(scored, np.ones((len(scored.labels), 1)))
    if bootstrap < 1 or len(np.unique(scored.groups)) < 2:
        return point, {name: value[:0] for name, value in point.items()}
    parts = list(_chunks(scored, bootstrap, rng))
    return point, {name: np.concatenate([part[name] for part in parts]) for name in point}


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """2.5th and 97.5th percentile of the defined resamples, or ``(None, None)`` when too few are defined."""
    defined = values[~np.isnan(values)]
    if not len(values) or len(defined) < DEFINED_SHARE * len(values):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def number(value: float) -> float | None:
    """A float, or ``None`` for what is undefined."""
    return None if np.isnan(value) else float(value)


def _empty(task: str, classes: Sequence[str]) -> dict[str, Any]:
    nothing: dict[str, Any] = {m: {"value": None, "low": None, "high": None, "n": 0, "classes": []} for m in METRICS}
    blank = {"n": 0, "positives": 0, **dict.fromkeys(PER_CLASS), "intervals": dict.fromkeys(PER_CLASS)}
    nothing["per_class"] = {name: {**blank, "intervals": dict.fromkeys(PER_CLASS)} for name in classes}
    size = len(classes)
    nothing["confusion"] = None if task == "multilabel" else [[0] * size for _ in range(size)]
    nothing["reliability"] = []
    return {**nothing, "groups": 0, "bootstrap": 0}


def reliability(scored: Scored) -> list[dict[str, float | int]]:
    """The bins of the reliability diagram that hold something: edges, mean confidence, observed frequency, ``n``."""
    confidence, correct = (part.ravel() for part in scored.confidence)
    bins = weighted.bin_of(confidence)
    return [
        {
            "low": int(b) / weighted.ECE_BINS,
            "high": (int(b) + 1) / weighted.ECE_BINS,
            "confidence": float(confidence[bins == b].mean()),
            "frequency": float(correct[bins == b].mean()),
            "n": int((bins == b).sum()),
        }
        for b in np.unique(bins)
    ]


def compute_metrics(
    probabilities: np.ndarray,
    decided: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    task: str,
    classes: Sequence[str],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """All metrics of one set of images, ready for strict JSON.

    Args:
        probabilities: ``(N, C)`` calibrated probabilities.
        decided: ``(N,)`` class index; multilabel ``(N, C)`` bool.
        labels: ``(N,)`` class index; multilabel ``(N, C)`` 0/1.
        groups: ``(N,)`` group of each image; the bootstrap draws groups.
        task: multiclass, ordinal or multilabel.
        classes: the C names, in the order of the outputs.
        bootstrap: number of resamples; 0: no intervals.
        seed: of the resamples.

    Returns:
        Each of :data:`METRICS` as ``{value, low, high, n, classes}``; ``per_class`` (``n``, ``positives``, the metrics
        of :data:`PER_CLASS` and their ``intervals`` as ``[low, high]``); ``confusion`` (rows truth, columns decided;
        ``None`` for multilabel); ``reliability``; ``groups`` and ``bootstrap``, what the intervals rest on.

    Raises:
        ValueError: shapes, classes or probabilities that cannot be.
    """
    scored = Scored(probabilities, decided, labels, groups, task)
    if len(classes) != scored.probabilities.shape[1]:
        raise ValueError(f"{len(classes)} class names for {scored.probabilities.shape[1]} probabilities")
    n = len(scored.labels)
    if n == 0:
        return _empty(task, classes)
    point, resampled = replicates(scored, bootstrap, numpy_generator(seed, "bootstrap"))
    positives = scored.positives
    out: dict[str, Any] = {}
    for metric in METRICS:
        counted = ~np.isnan(point[MACRO_OF[metric]][0]) if metric in MACRO_OF else positives > 0
        low, high = interval(resampled[metric])
        value = number(point[metric][0])
        used = [name for name, there in zip(classes, counted, strict=True) if there and value is not None]
        out[metric] = {"value": value, "low": low, "high": high, "n": n, "classes": used}
    out["per_class"] = {}
    for c, name in enumerate(classes):
        spans = {key: interval(resampled[key][:, c]) for key in PER_CLASS}
        out["per_class"][name] = {
            "n": n,
            "positives": int(positives[c]),
            **{key: number(point[key][0, c]) for key in PER_CLASS},
            "intervals": {key: None if span[0] is None else list(span) for key, span in spans.items()},
        }
    counts = None
    if task != "multilabel":
        table = weighted.confusion(scored.labels, scored.decided, len(classes), np.ones((n, 1)))[0]
        counts = table.astype(int).tolist()
    out["confusion"] = counts
    out["reliability"] = reliability(scored)
    return {**out, "groups": len(np.unique(scored.groups)), "bootstrap": len(resampled["accuracy"])}


def quick(probabilities: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float | None]:
    """``auroc_macro``, ``balanced_accuracy`` and ``accuracy`` for a round's log: no intervals.

    The class decided is the most probable one (multilabel: probability above one half). Arguments as in
    :func:`metrics`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    names = ("auroc_macro", "balanced_accuracy", "accuracy")
    if not len(p):
        return dict.fromkeys(names)
    decided = p > 0.5 if task == "multilabel" else p.argmax(axis=1)
    scored = Scored(p, decided, labels, np.arange(len(p)), task)
    # As weighted_metrics with a weight of one each, bit for bit, since all that is divided are counts: a site judges
    # every round, and the rest of the metrics would take it longer than its few images do.
    truth = scored.labels if task == "multilabel" else np.eye(p.shape[1], dtype=bool)[scored.labels]
    said = scored.decided if task == "multilabel" else np.eye(p.shape[1], dtype=bool)[scored.decided]
    right, positives = (truth & said).sum(axis=0), truth.sum(axis=0)
    recall = weighted.divide(right.astype(np.float64), positives)
    if task == "multilabel":
        negatives = len(p) - positives
        recall = (recall + weighted.divide((~truth & ~said).sum(axis=0).astype(np.float64), negatives)) / 2
    auroc = np.array([weighted.auroc(p[:, c], truth[:, c]) for c in range(p.shape[1])])
    values = (weighted.mean_of_defined(auroc), weighted.mean_of_defined(recall), (truth == said).mean())
    if task != "multilabel":
        values = (*values[:2], right.sum() / len(p))
    return {name: number(value) for name, value in zip(names, values, strict=True)}
