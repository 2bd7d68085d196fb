"""The variance of an AUROC and of a difference of AUROCs without resampling, groups of images taken into account.

An AUROC is a mean over pairs of a positive and a negative image; DeLong, DeLong and Clarke-Pearson (1988, "Comparing
the areas under two or more correlated receiver operating characteristic curves") take its variance from each image's
own share in it: of a positive the share of negatives below it, of a negative the share of positives above it. Midranks
give these shares in one sort (Sun and Xu 2014). Where several images are of one patient their shares are summed before
they are squared (Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data"); with one image a group and one
class, :func:`standard_error` is DeLong's.

Shares of several classes (macro AUROC), models (differences), seeds (means) and sites are linear: they are averaged or
subtracted image by image first, so that whatever they have in common is in the variance.

Letters: ``N`` images, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def auroc_influence(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The AUROC of one class against the rest (ties count one half), and each image's influence on it.

    Args:
        scores: ``(N,)``; positive: ``(N,)`` bool.

    Returns:
        The area and ``(N,)``, which sums to 0 and whose squares sum to DeLong's variance; ``nan`` and zeros where
        positives or negatives are missing, infinite influence where there is but one of either.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    influence = np.zeros(len(scores))
    if not m or not n:
        return math.nan, influence
    whole = rankdata(scores)
    above = (whole[positive] - rankdata(scores[positive])) / n  # share of negatives below each positive
    below = 1.0 - (whole[~positive] - rankdata(scores[~positive])) / m  # share of positives above each negative
    area = float(above.mean())
    # An estimated mean uses up one degree of freedom: S10 and S01 of the paper have m - 1 and n - 1.
    influence[positive] = (above - area) / math.sqrt(m * (m - 1)) if m > 1 else np.inf
    influence[~positive] = (below - area) / math.sqrt(n * (n - 1)) if n > 1 else np.inf
    return area, influence


def macro_influence(scores: np.ndarray, truth: np.ndarray, classes: Sequence[int]) -> tuple[float, np.ndarray]:
    """Mean AUROC over ``classes`` that define one, and each image's influence ``(N,)`` on it; ``nan`` where none does.

    Args:
        scores: ``(N, C)``; truth: ``(N, C)`` bool.
        classes: columns that count.
    """
    parts = [auroc_influence(scores[:, c], truth[:, c]) for c in classes]
    defined = [(area, influence) for area, influence in parts if not math.isnan(area)]
    if not defined:
        return math.nan, np.zeros(len(scores))
    areas, influences = zip(*defined, strict=True)
    return float(np.mean(areas)), np.asarray(np.mean(influences, axis=0))


def standard_error(influence: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of a metric from each image's influence ``(N,)``; images of one group are not independent."""
    _, index = np.unique(groups, return_inverse=True)
    return math.sqrt(float(np.square(np.bincount(index, weights=influence)).sum()))
