"""A lower bound on epsilon from guesses who was in the training set (Steinke, Nasr and Jagielski 2023).

Each canary is put into the training set with probability one half, by itself. An attacker sees what the mechanism
released and says of some canaries that they were in or out, and nothing of the others. If the mechanism is
(epsilon, delta)-private with respect to one unit more or less, few guesses can be right, however many canaries share a
run and whatever they do to each other (theorem 5.2 there). So many right guesses refute an epsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

_MOST = 50.0
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability of at least ``correct`` right guesses under (epsilon, delta)-privacy, at most (theorem 5.2).

    Args:
        canaries: ``m``, each in or out with probability one half.
        guesses: ``r``, of how many of them something was said.
        correct: ``v``, of these.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError("0 <= correct <= guesses <= canaries does not hold")
    right = 1 / (1 + math.exp(-epsilon))
    plain = float(binom.sf(correct - 1, guesses, right))
    back = np.arange(1, correct + 1)
    # Sum of P[v - i] .. P[v - 1], over i: how much delta can buy for each unit of it, at most.
    bought = np.cumsum(binom.pmf(correct - back, guesses, right)) / back
    return min(1.0, plain + 2 * canaries * delta * float(bought.max(initial=0.0)))


def lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Largest epsilon that so many right guesses refute at this confidence; 0 if none is."""
    level = 1 - confidence
    if guesses == 0 or p_value(canaries, guesses, correct, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, _MOST
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, correct, middle, delta) <= level else (low, middle)
    return low


@dataclass(frozen=True)
class Result:
    """What one attack found.

    Attributes:
        canaries: in the runs that count (others served to choose how many guesses to make).
        guesses, correct: among them.
        bound: lower bound on epsilon.
    """

    canaries: int
    guesses: int
    correct: int
    bound: float


def assess(
    scores: np.ndarray, included: np.ndarray, delta: float, confidence: float = 0.95, said: np.ndarray | None = None
) -> Result:
    """The bound from each canary's score; the first half of the runs chooses how many guesses to make.

    Args:
        scores: ``(R, m)`` of R runs, larger: more likely in; above zero alone may be guessed in, below zero out.
        included: ``(R, m)`` bool, what was true.
        said: ``(R, m)`` bool, of which canaries the attacker says anything at all; none: of all.

    Returns:
        Counts and bound over the second half, which nothing was chosen by.

    Raises:
        ValueError: fewer than two runs.
    """
    if len(scores) < 2:
        raise ValueError("an audit needs at least two runs: one to choose by, one to count")
    half = len(scores) // 2
    said = np.ones(scores.shape, dtype=bool) if said is None else said
    first = scores[:half].ravel(), included[:half].ravel(), said[:half].ravel()
    second = scores[half:].ravel(), included[half:].ravel(), said[half:].ravel()
    shares = max(
        ((ins, outs) for ins in _SHARES for outs in _SHARES if ins + outs <= 1),
        key=lambda pair: _guess(*first, pair, delta, confidence).bound,
    )
    return _guess(*second, shares, delta, confidence)


def _guess(
    scores: np.ndarray,
    included: np.ndarray,
    said: np.ndarray,
    shares: tuple[float, float],
    delta: float,
    confidence: float,
) -> Result:
    """In for the highest scores, out for the lowest: at most these shares of all that something is said of."""
    order = np.flatnonzero(said)[np.argsort(-scores[said], kind="stable")]
    ins, outs = (int(share * len(order)) for share in shares)
    # A share may be larger than what speaks for it: of 300 canaries seldom just 150 are in.
    ins, outs = min(ins, int((scores[order] > 0).sum())), min(outs, int((scores[order] < 0).sum()))
    correct = int(included[order[:ins]].sum() + (~included[order[len(order) - outs :]]).sum())
    return Result(len(scores), ins + outs, correct, lower_bound(len(scores), ins + outs, correct, delta, confidence))
