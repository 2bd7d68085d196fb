"""Metrics of merit under many sets of sample weights at once: what makes the bootstrap fast.

A resample with replacement is nothing but an integer weight for each sample, so one sort serves all resamples.
Letters: ``N`` samples, ``R`` resamples, ``C`` classes. ``weights`` is always ``(N, R)`` float64 holding
non-negative whole numbers, so that sums of counts are exact. Undefined is ``nan`` here (arrays have no other word
for it); :mod:`fed_diffmic.training.metrics` turns it into ``None`` before anything is written.
"""

from __future__ import annotations

import math

import numpy as np

ECE_BINS = 15


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """``numerator / denominator``, ``nan`` where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=np.broadcast_to(denominator, shape) != 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; ``nan`` where nothing is."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def resample_weights(groups: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``resamples`` times as many groups as there are, with replacement.

    Args:
        groups: ``(N,)`` index of each sample's group, 0 to G - 1.
        resamples: R.

    Returns:
        ``(N, R)``: how often each sample occurs; all samples of a group share one count.
    """
    count = int(groups.max()) + 1
    drawn = rng.integers(count, size=(resamples, count), dtype=np.int64)
    drawn += np.arange(resamples, dtype=np.int64)[:, None] * count
    times = np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count)
    return np.ascontiguousarray(times.T.astype(np.float64))[groups]


def ranking(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision of one class against the rest.

    Ties count one half in the AUROC (Mann-Whitney) and form one threshold in the average precision
    (``sum (recall_k - recall_(k-1)) precision_k``), as in scikit-learn.

    Args:
        scores: ``(N,)``; positive: ``(N,)`` bool; weights: ``(N, R)``.

    Returns:
        AUROC ``(R,)`` and average precision ``(R,)``; ``nan`` where positives or negatives are missing (an average
        precision without negatives is 1 by definition and says nothing).
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], positive[order]
    changes = np.flatnonzero(ranked[1:] != ranked[:-1])
    starts, ends = np.r_[0, changes + 1], np.r_[changes, len(ranked) - 1]  # runs of equal scores, best first
    held = np.r_[0, np.cumsum(truth)]  # positives before each rank
    holding = held[ends + 1] > held[starts]  # only runs with a positive contribute to either sum
    starts, ends = starts[holding], ends[holding]
    seen = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights[order], axis=0)])
    w = weights[order[truth]]
    seen_positive = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(w, axis=0)])
    total, total_positive = seen[-1], seen_positive[-1]
    total_negative = total - total_positive
    until, until_positive = seen[ends + 1], seen_positive[held[ends + 1]]
    run_positive = until_positive - seen_positive[held[starts]]
    run_negative = until - seen[starts] - run_positive
    # Negatives ranked strictly below a run, plus half of those inside it.
    below = total_negative - (until - until_positive) + 0.5 * run_negative
    auroc = divide((run_positive * below).sum(axis=0), total_positive * total_negative)
    precision = np.divide(until_positive, until, out=np.zeros_like(until), where=until > 0)
    average = divide((run_positive * precision).sum(axis=0), total_positive)
    average[total_negative == 0] = np.nan
    return auroc, average


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of one class against the rest, every sample once; as :func:`ranking`, bit for bit.

    Args:
        scores: ``(N,)``; positive: ``(N,)`` bool.

    Returns:
        ``nan`` where positives or negatives are missing.
    """
    above, below = scores[positive], np.sort(scores[~positive])
    if not len(above) or not len(below):
        return math.nan
    # Twice the pairs that are in order, ties as one half: a whole number.
    ordered = below.searchsorted(above, "left").sum() + below.searchsorted(above, "right").sum()
    return float(0.5 * ordered / (len(above) * len(below)))


def confusion(labels: np.ndarray, decided: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Counts ``(R, C, C)``: rows truth, columns decided. ``labels`` and ``decided`` are ``(N,)`` class indices."""
    cell = labels * classes + decided
    table = np.zeros((classes * classes, weights.shape[1]))
    for value in np.unique(cell):
        table[value] = weights[cell == value].sum(axis=0)
    return table.T.reshape(-1, classes, classes)


def label_counts(labels: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """True positives, false positives, false negatives, true negatives of each label: four ``(R, C)``.

    Args:
        labels, decided: ``(N, C)`` bool.
    """
    both = (labels & decided, ~labels & decided, labels & ~decided, ~labels & ~decided)
    return tuple(weights.T @ part.astype(np.float64) for part in both)


def one_against_rest(table: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four counts of :func:`label_counts` from a confusion table ``(R, C, C)``."""
    tp = np.diagonal(table, axis1=1, axis2=2)
    fp, fn = table.sum(axis=1) - tp, table.sum(axis=2) - tp
    return tp, fp, fn, table.sum(axis=(1, 2))[:, None] - tp - fp - fn


def quadratic_kappa(table: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights (Cohen 1968) of ordered classes, ``(R,)`` from ``(R, C, C)``.

    ``nan`` where the truth is a single class: whatever is decided, agreement is no better than chance's.
    """
    grades = np.arange(table.shape[1])
    penalty = (grades[:, None] - grades[None, :]) ** 2.0
    expected = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
    observed = (penalty * table).sum(axis=(1, 2)) * table.sum(axis=(1, 2))
    found = 1.0 - divide(observed, (penalty * expected).sum(axis=(1, 2)))
    return np.where((table.sum(axis=2) > 0).sum(axis=1) > 1, found, np.nan)


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Which of the 15 equal-width bins (lower edge open, upper closed; 0 falls in the first)."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error (Guo et al. 2017) ``(R,)``: mean over samples of a bin's |confidence - frequency|.

    Args:
        confidence, correct: ``(N, L)``: L = 1 (top class) or the number of labels, all pooled.
    """
    gaps = np.zeros((ECE_BINS, confidence.shape[0]))
    rows = np.broadcast_to(np.arange(confidence.shape[0])[:, None], confidence.shape)
    np.add.at(gaps, (bin_of(confidence), rows), confidence - correct)
    return divide(np.abs(gaps @ weights).sum(axis=0), weights.sum(axis=0) * confidence.shape[1])


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of ``values`` ``(N,)`` under each set of weights: ``(R,)``."""
    return divide(values @ weights, weights.sum(axis=0))
