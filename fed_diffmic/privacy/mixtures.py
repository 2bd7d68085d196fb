"""What a patient's loss is where each image is drawn by itself: Renyi divergence of a mixture of Gaussians.

Of a patient with ``k`` images, each taken with probability ``q`` and clipped to ``C``, ``J`` of Bin(k, q) are in a
step, and the noised sum moves by at most ``J C``. So the step is dominated by ``N(0, sigma^2)`` against the mixture of
``N(j, sigma^2)`` with the weights of Bin(k, q) (Choquette-Choo, Ganesh, Steinke and Thakurta 2023, arXiv 2310.15526,
corollary 4.7), in whichever direction is larger.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

_TAIL = 12.0  # deviations of noise beyond which nothing counts: exp(-72)
_STEP = 0.25  # of a Gaussian of deviation 1; the trapezoid rule's relative error is then about exp(-300)
_MOST = 500_000  # numbers that one order may take; a dearer one is left out (infinity: no bound by it)
_ROUNDING = 1e-9  # relative; the sums are of some ten thousand float64


@functools.lru_cache(maxsize=1024)
def mixture_rdp(rate: float, sigma: float, images: int, orders: Sequence[float]) -> np.ndarray:
    """Renyi divergence of one step at each order, in nats; infinity where it would take too long to compute.

    Args:
        rate: ``q``, probability that an image is drawn.
        sigma: noise over the clipping bound, > 0.
        images: ``k``, the most images of a patient.
        orders: each > 1; hashable.
    """
    step = 1.0 / sigma
    counts = np.arange(images + 1)
    with np.errstate(divide="ignore"):
        weights = _log_binomial(images, rate)
    values = []
    for order in orders:
        # Towards the mixture the mass moves up to (order k) away; from it, down to where the slope of the log ratio,
        # at most its value at nobody's sum, is made up for. There it is as narrow as the ratio is curved.
        upwards = (-_TAIL, _TAIL + order * images * step, min(_STEP, 0.3 * sigma))
        narrow = _STEP / math.sqrt(1 + order * (images * step) ** 2 / 4)
        downwards = (-_TAIL - order * images * rate * step, _TAIL, min(narrow, 0.3 * sigma))
        both = [
            _log_moment(power, *limits, step=step, counts=counts, weights=weights)
            for power, limits in ((order, upwards), (1 - order, downwards))
        ]
        values.append(max(0.0, *both) / (order - 1) * (1 + _ROUNDING))
    return np.array(values)


def _log_moment(
    power: float, low: float, high: float, width: float, *, step: float, counts: np.ndarray, weights: np.ndarray
) -> float:
    """``log E[ratio(y)^power]`` over ``y ~ N(0, 1)``, where the ratio is that of the mixture's density to nobody's."""
    from scipy.special import logsumexp

    points = math.ceil((high - low) / width) + 1
    if points * len(counts) > _MOST:
        return math.inf
    y = low + width * np.arange(points)
    ratio = logsumexp(
        weights[:, None] + counts[:, None] * step * y[None, :] - (counts[:, None] * step) ** 2 / 2, axis=0
    )
    return float(logsumexp(power * ratio - y**2 / 2) + math.log(width / math.sqrt(2 * math.pi)))


def _log_binomial(count: int, rate: float) -> np.ndarray:
    """``(count + 1,)`` logarithms of Bin(count, rate)."""
    from scipy.stats import binom

    return np.asarray(binom.logpmf(np.arange(count + 1), count, rate))
