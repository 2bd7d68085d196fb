"""Faults seen: a coin of another bias, zero twice as likely, a tail that is cut, a remainder for small numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fed_diffmic.privacy.distributed import discrete
from fed_diffmic.privacy.distributed.discrete import discrete_gaussian
from fed_diffmic.privacy.randomness import Randomness


@pytest.mark.parametrize("deviation", [1, 2, 5])
def test_every_whole_number_is_as_likely_as_the_definition_says(deviation: int) -> None:
    drawn = discrete_gaussian(Randomness(deviation, "chi"), deviation, 60_000)
    places = np.arange(-12 * deviation, 12 * deviation + 1)
    chance = np.exp(-(places**2) / (2 * deviation**2))
    expected = chance / chance.sum() * len(drawn)
    seen = np.array([(drawn == place).sum() for place in places])
    common = expected >= 8
    rest = np.append(seen[common], seen[~common].sum()), np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(*rest).pvalue > 1e-3
    assert seen.sum() == len(drawn)


def test_a_large_deviation_is_the_normal_distribution_with_its_tails() -> None:
    drawn = discrete_gaussian(Randomness(7, "normal"), 9000, 120_000)
    assert stats.kstest((drawn + 0.5) / 9000, "norm").pvalue > 1e-3
    far = (np.abs(drawn) > 3 * 9000).mean()
    assert stats.binomtest(int(far * len(drawn)), len(drawn), 2 * stats.norm.sf(3)).pvalue > 1e-3
    neighbours = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(len(drawn))


@pytest.mark.parametrize(("above", "below"), [(0, 7), (1, 3), (5, 5), (9, 4), (31, 4)])
def test_a_coin_has_the_bias_of_an_exponential(above: int, below: int) -> None:
    count = 30_000
    up = discrete._coins(Randomness(above, below), np.full(count, above), np.full(count, below)).sum()
    assert stats.binomtest(int(up), count, math.exp(-above / below)).pvalue > 1e-3


def test_whole_numbers_below_a_bound_are_uniform_where_a_remainder_would_not_be() -> None:
    # 2^64 modulo 3 * 2^62 leaves a third of the bound twice as likely.
    bound = 3 * 2**61
    drawn = Randomness(1, "below").below(np.full(30_000, bound)).astype(np.float64) / bound
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    six = Randomness(2, "below").below(np.full(30_000, 6))
    assert stats.chisquare(np.bincount(six.astype(int), minlength=6)).pvalue > 1e-3


def test_noise_is_never_the_same_twice_and_a_deviation_out_of_range_is_refused() -> None:
    assert not np.array_equal(discrete_gaussian(Randomness(), 50, 64), discrete_gaussian(Randomness(), 50, 64))
    assert discrete_gaussian(Randomness(), 5, 0).shape == (0,)
    for wrong in (0, discrete.MOST_DEVIATION + 1):
        with pytest.raises(ValueError, match="whole number"):
            discrete_gaussian(Randomness(), wrong, 1)
