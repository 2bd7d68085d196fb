"""Discrete Gaussian noise, exactly: no floating-point number takes part in what is drawn.

The sampler is that of Canonne, Kamath and Steinke (2020, arXiv 2004.00010): algorithm 1 gives a coin of bias
``exp(-a/b)`` from coins of rational bias, algorithm 2 a discrete Laplace variable, algorithm 3 rejects down to
``P[x]`` in proportion to ``exp(-x^2 / (2 sigma^2))`` on all integers. The scale of the Laplace variable is ``sigma``
itself (any scale is right; this one accepts three of four). All arithmetic is on integers below 2^63, for many numbers
at a time.
"""

from __future__ import annotations

import numpy as np

from fed_diffmic.privacy.randomness import Randomness

MOST_DEVIATION = 1 << 24
"""The largest standard deviation, in integers: beyond it products would leave 64 bits."""

FAR = 1 << 7
"""Deviations: no draw is ever so far out (it would be with a probability of exp(-128)), and its square fits."""
_PROPOSALS = 2.2  # how many are drawn for each number that is wanted


def discrete_gaussian(random: Randomness, deviation: int, count: int) -> np.ndarray:
    """``(count,)`` int64, independent draws of the discrete Gaussian with parameter ``deviation``.

    Args:
        random: where its bits come from.
        deviation: ``sigma``, a whole number from 1 (the variance is ``sigma^2`` but for an exponentially small part).

    Raises:
        ValueError: the deviation is not such a number.
    """
    if not 1 <= deviation <= MOST_DEVIATION:
        raise ValueError(f"the deviation of discrete noise is a whole number from 1 to {MOST_DEVIATION}")
    parts, left = [], count
    while left > 0:
        drawn = _discrete_laplace(random, deviation, int(left * _PROPOSALS) + 16)
        distance = np.abs(np.abs(drawn) - deviation)
        twice = np.full(len(drawn), 2 * deviation**2)
        taken = drawn[_coins(random, distance**2, twice)][:left]
        parts.append(taken)
        left -= len(taken)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _discrete_laplace(random: Randomness, scale: int, tries: int) -> np.ndarray:
    """Draws ``x`` in proportion to ``exp(-|x| / scale)`` from so many tries (algorithm 2); fewer than them, int64."""
    rest = random.below(np.full(tries, scale)).astype(np.int64)
    rest = rest[_coins(random, rest, np.full(tries, scale))]
    whole = _geometric(random, len(rest))
    size = rest + scale * whole
    negative = random.below(np.full(len(size), 2)).astype(bool)
    kept = ~(negative & (size == 0))  # else zero would count twice
    kept &= size < FAR * scale
    return np.where(negative, -size, size)[kept]


def _geometric(random: Randomness, count: int) -> np.ndarray:
    """How many coins of bias ``exp(-1)`` came up before the first that did not, int64."""
    found, going = np.zeros(count, dtype=np.int64), np.arange(count)
    while len(going):
        going = going[_small_coins(random, np.ones(len(going), dtype=np.int64), np.ones(len(going), dtype=np.int64))]
        found[going] += 1
    return found


def _coins(random: Randomness, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Coins of bias ``exp(-above / below)``, ``above >= 0``: that of the rest times ``exp(-1)`` as often as it fits."""
    whole, rest = np.divmod(above, below)
    result = _small_coins(random, rest, below)
    going = np.flatnonzero(result & (whole > 0))
    while len(going):
        ones = np.ones(len(going), dtype=np.int64)
        kept = _small_coins(random, ones, ones)
        result[going[~kept]] = False
        whole[going] -= 1
        going = going[kept & (whole[going] > 0)]
    return result


def _small_coins(random: Randomness, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Coins of bias ``exp(-above / below)`` with ``above <= below``: algorithm 1, von Neumann's.

    Coins of bias ``above / (k below)``, ``k`` = 1, 2, ..., until one does not come up: the answer is whether that ``k``
    is odd.
    """
    result, going = np.zeros(len(above), dtype=bool), np.arange(len(above))
    k = 1
    while len(going):
        up = random.below(below[going] * k) < above[going].astype(np.uint64)
        result[going[~up]] = k % 2 == 1
        going = going[up]
        k += 1
    return result
