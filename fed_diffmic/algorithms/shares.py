"""How much of a whole one site may be: weights that are capped, and a mean that no single site moves far.

Both are used wherever sites are weighted: averages of updates, the class prior, the choice of the round, the
calibration, the means in reports. With a cap of 1 nothing changes, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

_ROUNDING = 1e-9

LEAST_SITES = 3
"""Of two sites that contradict each other nobody can say which one is wrong; from three on one can be outvoted."""

MEDIAN_SHARE = 1.0 / 3.0
"""The largest weight of one site in :func:`trimmed`: less than half, so that the others always surround its value."""


def effective_share(max_share: float, sites: int) -> float:
    """The cap that holds among ``sites`` sites: none (1) where they are too few for one to mean anything."""
    return max_share if sites >= LEAST_SITES else 1.0


def capped(weights: Mapping[str, float], max_share: float) -> dict[str, float]:
    """Weights of which none is more than ``max_share`` of their sum: what is larger is cut to one common level.

    The cut weights are the largest level for which that holds (water filling), so the others keep their proportions
    and nobody overtakes anybody. Where the cap is less than an equal part of ``K`` weights, all are made equal, which
    is the least that the largest can be.

    Args:
        weights: by site, not negative and finite.
        max_share: in (0, 1]; 1: as they are.
    """
    if max_share >= 1.0 or not weights:
        return dict(weights)
    ordered = sorted(weights.values(), reverse=True)
    if ordered[0] <= max_share * math.fsum(ordered):
        return dict(weights)
    level = ordered[-1]  # everyone equal
    for count in range(1, len(ordered)):
        if count * max_share >= 1.0:
            break
        # With the ``count`` largest cut, and the rest as it is: count * level + rest = level / max_share.
        rest = math.fsum(ordered[count:])
        found = max_share * rest / (1.0 - count * max_share)
        if found >= ordered[count]:
            level = found
            break
    return {site: min(value, level) for site, value in weights.items()}


def trimmed(values: Sequence[np.ndarray | float], weights: Sequence[float]) -> np.ndarray:
    """Weighted mean over the sites, of each element, without as much weight at either end as the heaviest site has.

    No weight counts for more than a third of all (:data:`MEDIAN_SHARE`). Whatever one site says, the result lies
    between the least and the greatest of the others' values; of three sites with equal weights it is their median, of
    many nearly their mean.

    Args:
        values: one array a site, all of one shape; at least three, of positive weight.
        weights: one a site.

    Raises:
        ValueError: fewer than three values.
    """
    if len(values) < LEAST_SITES:
        raise ValueError("a trimmed mean needs three values")
    table = np.stack([np.asarray(value, dtype=np.float64) for value in values])
    shares = capped({str(i): float(w) for i, w in enumerate(weights)}, MEDIAN_SHARE)
    total = math.fsum(shares.values())
    share = np.array([shares[str(i)] / total for i in range(len(values))])
    order = np.argsort(table, axis=0, kind="stable")
    ordered = np.take_along_axis(table, order, axis=0)
    upper = np.cumsum(share[order], axis=0)
    lower = upper - share[order]
    cut = share.max()
    kept = np.minimum(upper, 1.0 - cut) - np.maximum(lower, cut)
    kept = np.where(kept > _ROUNDING, kept, 0.0)  # not 1e-17 of a number that someone chose to be 1e300
    return np.asarray((kept * ordered).sum(axis=0) / kept.sum(axis=0))
