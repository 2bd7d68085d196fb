import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fed_diffmic.privacy.audit.bound import assess, lower_bound, p_value

DELTA = 1e-5


def p_value_twin(m, r, v, epsilon, delta):
    """Theorem 5.2 of Steinke et al. (2023), term by term."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))

    chance = binom.pmf(np.arange(r + 1), r, right)

    def tail(least):
        return chance[max(least, 0) :].sum()

    bought = max(((tail(v - i) - tail(v)) / i for i in range(1, m + 1)), default=0.0)
    return min(1.0, tail(v) + 2 * m * delta * bought)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.data(), st.floats(0, 6), st.sampled_from([0.0, 1e-5, 1e-2]))
def test_the_probability_is_the_theorems(m, data, epsilon, delta):
    r = data.draw(st.integers(0, m))
    v = data.draw(st.integers(0, r))
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(p_value_twin(m, r, v, epsilon, delta), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.data())
def test_more_right_guesses_never_lower_the_bound_and_it_is_where_the_probability_is(m, data):
    r = data.draw(st.integers(1, m))
    v = data.draw(st.integers(1, r))
    bound = lower_bound(m, r, v, DELTA)
    assert bound >= lower_bound(m, r, v - 1, DELTA)
    assert p_value(m, r, v, bound + 1e-3, DELTA) > 0.05
    assert bound == 0 or p_value(m, r, v, bound, DELTA) <= 0.05


def test_all_guesses_right():
    right = 0.05 ** (1 / 200)
    assert lower_bound(200, 200, 200, 0.0) == pytest.approx(math.log(right / (1 - right)), abs=1e-3)
    assert lower_bound(200, 0, 0, DELTA) == 0
    assert lower_bound(10, 4, 4, DELTA) == 0  # one in sixteen


def test_impossible_counts():
    for m, r, v in ((3, 4, 1), (5, 3, 4), (5, 3, -1)):
        with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
            p_value(m, r, v, 1.0, DELTA)


def test_the_bound_holds_as_often_as_it_says_and_is_not_vain():
    """Against randomised response, whose epsilon is known and for which nothing better can be guessed."""
    rng = np.random.default_rng(0)
    right = rng.binomial(400, 1 / (1 + math.exp(-1.5)), size=400)
    bounds = np.array([lower_bound(400, 400, int(v), 0.0) for v in right])
    assert 0.02 < (bounds > 1.5).mean() <= 0.06
    assert np.median(bounds) > 1.2


def test_what_serves_to_choose_does_not_count():
    rng = np.random.default_rng(1)
    included = rng.random((2, 300)) < 0.5
    scores = np.stack([np.where(included[0], 1.0, -1.0), rng.random(300) - 0.5])
    assert assess(scores, included, DELTA).bound < 0.5
    assert assess(scores[::-1], included[::-1], DELTA).guesses == 0  # by the first run nothing can be said
    assert assess(np.stack([scores[0]] * 2), included[[0, 0]], DELTA).bound > 4


def test_where_nothing_is_said_nothing_is_guessed():
    rng = np.random.default_rng(2)
    included = rng.random((2, 300)) < 0.5
    said = rng.random((2, 300)) < 0.25
    result = assess(np.where(said == included, 1.0, -1.0), included, DELTA, said=said)
    assert result.canaries == 300 and result.correct == result.guesses <= said[1].sum()
    assert assess(included.astype(float), included, DELTA, said=np.zeros_like(said)).bound == 0


def test_nobody_is_guessed_in_against_the_evidence():
    rng = np.random.default_rng(3)
    included = rng.random((2, 300)) < 0.4  # fewer than the largest share
    scores = np.where(included, 1.0, -1.0)
    assert assess(scores, included, DELTA).correct == assess(scores, included, DELTA).guesses > 250
    assert assess(np.zeros((2, 300)), included, DELTA).guesses == 0


def test_one_run_is_too_few():
    with pytest.raises(ValueError, match="two runs"):
        assess(np.zeros((1, 4)), np.zeros((1, 4), dtype=bool), DELTA)
