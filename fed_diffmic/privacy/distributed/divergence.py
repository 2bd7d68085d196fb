"""How far noise that sites share keeps two sums apart: exactly for what is added, whole numbers and all.

**The noise.** A sum of discrete Gaussians is none. Kairouz, Liu and Steinke (2021, arXiv 2102.06387, proposition 14)
bound by how much it fails to be one: for the sum ``Z`` of ``n`` independent shares with parameter ``sigma`` in each of
``d`` coordinates, every whole vector ``v`` and every order ``a >= 1``,

    D_a(Z || Z + v) <= a |v|^2 / (2 n sigma^2) + tau d,   tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 sigma^2 k / (k + 1)).

With shares of :data:`fed_diffmic.privacy.distributed.form.LEAST_DEVIATION` or more ``tau d`` is below 1e-250 for
anything that fits into a computer: below the rounding of the other term, for which :data:`ROUNDING` is added. More
noise than was counted (larger shares, more sites) is what is made of the sum afterwards, and costs nothing.

**What a unit changes.** It adds a whole vector of squared length at most ``form.most_squared``, itself random
(rounding, regions, images drawn) but independent of everything else: the divergence is jointly quasi-convex, so that
of the worst vector stands for all.

**Sampling.** Each unit takes part with probability ``q``. With ``P`` the distribution of the noise and ``Q`` that of
``v`` more, for whole orders ``a``

    (a - 1) D_a((1 - q) P + q Q || P) = ln sum_l C(a, l) (1 - q)^(a - l) q^l E_P[(Q / P)^l],

and ``E_P[(Q/P)^l] = exp((l - 1) D_l(Q || P))`` is bounded as above: this is the formula of Mironov, Talwar and Zhang
(2019, section 3.3), which needs of a Gaussian no more than these moments. The other direction is smaller:
``x -> v - x`` is a bijection that exchanges ``P`` and ``Q`` (their theorem 5; with ``z = Q/P``, ``u = 1 - q + q z`` and
``w = 1 - q + q / z`` it comes down to ``sqrt(u) sinh(k ln u) >= z sqrt(w) sinh(k ln(1/w))`` for ``k = a - 1/2 >= 1/2``
and ``z >= 1``, which is an equality at ``k = 1/2`` and whose left side grows faster with ``k``, as ``u w >= 1``).
Between whole orders ``(a - 1) D_a`` is convex in ``a`` and zero at 1: the chord is above it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ROUNDING = 1e-9
"""Relative; of some thousand float64 operations, and of ``tau d``."""


def excess(shares: int, deviation: float) -> float:
    """``tau`` of ``n`` shares: how far their sum is from a discrete Gaussian, in each coordinate."""
    terms = (math.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)) for k in range(1, shares))
    return 10 * sum(terms)


@functools.lru_cache(maxsize=1024)
def discrete_rdp(rate: float, sigma: float, orders: Sequence[float]) -> np.ndarray:
    """Renyi divergence of one step at each order, in nats.

    Args:
        rate: ``q`` in (0, 1].
        sigma: deviation of the summed noise over what a unit can change, > 0.
        orders: each > 1; hashable.
    """
    import numpy as np

    moments = {}

    def moment(order: int) -> float:
        """``(a - 1) D_a`` of a whole order."""
        if order not in moments:
            moments[order] = 0.0 if order == 1 else _log_moment(rate, sigma, order)
        return moments[order]

    found = []
    for order in orders:
        low, high = math.floor(order), math.ceil(order)
        if rate == 1.0:  # the bound of the sum itself, which holds at every order
            found.append(order / (2 * sigma**2))
            continue
        part = order - low
        chord = moment(low) if part == 0 else (1 - part) * moment(low) + part * moment(high)
        found.append(chord / (order - 1))
    return np.array(found) * (1 + ROUNDING)


def _log_moment(rate: float, sigma: float, order: int) -> float:
    import numpy as np
    from scipy.special import gammaln, logsumexp

    number = np.arange(order + 1)
    ways = gammaln(order + 1) - gammaln(number + 1) - gammaln(order - number + 1)
    drawn = ways + number * math.log(rate) + (order - number) * math.log1p(-rate)
    return float(logsumexp(drawn + number * (number - 1) / (2 * sigma**2)))
