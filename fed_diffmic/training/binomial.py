"""Intervals of shares of images, where several images may be of one patient."""

from __future__ import annotations

import numpy as np
from scipy.stats import beta


def clopper_pearson(hits: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934), for numbers that need not be whole; (0, 1) for none."""
    if n <= 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if hits <= 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits >= n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def design_effect(groups: np.ndarray) -> float:
    """How many times as many images as if each were of another patient are needed, at most: ``sum m^2 / sum m``.

    ``m`` are the images of each group. It is Kish's design effect (1965, section 5.4) for images of a patient that
    say all the same; intervals made with it are never too narrow for that reason. 1 for no image.
    """
    if not len(groups):
        return 1.0
    sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float((sizes**2).sum() / sizes.sum())


def share(hits: np.ndarray, groups: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """A share of images with its 95 % interval, widened for images of one patient; none of no image.

    Args:
        hits: ``(N,)`` bool.
        groups: ``(N,)`` of which patient each image is.
    """
    n = len(hits)
    if n == 0:
        return None, None, None
    effect = design_effect(groups)
    value = float(np.mean(hits))
    return value, *clopper_pearson(value * n / effect, n / effect)
