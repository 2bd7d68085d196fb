"""Seeded draws of a set, plain or stratified: those of scikit-learn's splitters, number for number.

``ShuffleSplit`` and ``StratifiedShuffleSplit`` (scikit-learn 1.x) divided every site's images until now, and a run that
is continued must draw the same ones. To import them takes two seconds of every start, for SciPy's statistics and more;
what they compute with is numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def shuffled(count: int, size: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """``draws`` times ``size`` of ``count`` positions (as ``ShuffleSplit(draws, test_size=size, random_state=seed)``).

    Args:
        count: positions; more than ``size``.
        seed: in [0, 2^32).
    """
    random = np.random.RandomState(seed)
    for _ in range(draws):
        yield random.permutation(count)[:size]


def stratified(strata: np.ndarray, size: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """The same with each stratum's share (as ``StratifiedShuffleSplit(draws, test_size=size, random_state=seed)``).

    Args:
        strata: of each position, ``(N,)``; each of two or more.
        size: at least the number of strata, as is what is left.
    """
    kinds, of, counts = np.unique(strata, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(of, kind="stable"), np.cumsum(counts)[:-1])
    random = np.random.RandomState(seed)
    for _ in range(draws):
        left = _shares(counts, len(strata) - size, random)
        taken = _shares(counts - left, size, random)
        chosen: list[int] = []
        rest: list[int] = []
        for kind in range(len(kinds)):
            order = members[kind][random.permutation(counts[kind])]
            rest.extend(order[: left[kind]])
            chosen.extend(order[left[kind] : left[kind] + taken[kind]])
        random.permutation(rest)  # the other side's order, which nobody asks for, comes before in the stream
        yield random.permutation(chosen)


def _shares(counts: np.ndarray, size: int, random: np.random.RandomState) -> np.ndarray:
    """How many of each stratum: its share rounded down, and one more where most is lost by that, ties by lot."""
    exact = counts / counts.sum() * size
    found = np.floor(exact)
    missing = int(size - found.sum())
    lost = exact - found
    for value in np.unique(lost)[::-1] if missing > 0 else []:
        (where,) = np.where(lost == value)
        more = min(len(where), missing)
        found[random.choice(where, size=more, replace=False)] += 1
        missing -= more
        if missing == 0:
            break
    return found.astype(int)
