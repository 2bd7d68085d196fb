"""The AUROC's variance: by hand, against the definition over all pairs, and against a bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import weighted
from fed_diffmic.training.delong import auroc_influence, macro_influence, standard_error


def test_by_hand():
    """Positives 0.8, 0.6, 0.35; negatives 0.7, 0.4, 0.3, 0.1: of 12 pairs 4 + 3 + 2 are in order.

    Positives have 1, 3/4, 2/4 of the negatives below them (mean 3/4): S10 = (1/16 + 0 + 1/16) / 2 = 1/16. Negatives
    have 1/3, 2/3, 1, 1 of the positives above them: S01 = (25/144 + 1/144 + 9/144 + 9/144) / 3 = 44/432.
    """
    scores = np.array([0.8, 0.6, 0.35, 0.7, 0.4, 0.3, 0.1])
    positive = np.arange(7) < 3
    area, influence = auroc_influence(scores, positive)
    assert area == pytest.approx(9 / 12)
    assert standard_error(influence, np.arange(7)) ** 2 == pytest.approx((1 / 16) / 3 + (44 / 432) / 4)
    assert influence.sum() == pytest.approx(0)


def by_definition(a, b, positive):
    """DeLong's variance of a difference, from the kernel of every pair."""

    def components(scores):
        pairs = scores[positive][:, None] - scores[~positive][None, :]
        kernel = (pairs > 0) + 0.5 * (pairs == 0)
        return kernel.mean(axis=1), kernel.mean(axis=0), kernel.mean()

    (v10, v01, one), (w10, w01, two) = components(a), components(b)
    s10, s01 = np.cov(v10, w10), np.cov(v01, w01)
    contrast = np.array([1, -1])
    m, n = positive.sum(), (~positive).sum()
    return one - two, contrast @ (s10 / m + s01 / n) @ contrast


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(2, 20), st.sampled_from([2, 5, 1000]))
def test_a_difference_is_delongs_with_ties_and_without(seed, m, n, levels):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, levels, (2, m + n)) / levels
    positive = rng.permutation(m + n) < m
    value, variance = by_definition(a, b, positive)
    (one, first), (two, second) = auroc_influence(a, positive), auroc_influence(b, positive)
    assert one - two == pytest.approx(value, abs=1e-12)
    assert standard_error(first - second, np.arange(m + n)) == pytest.approx(math.sqrt(max(variance, 0)), abs=1e-9)


def macro(p, truth, weights):
    return weighted.mean_of_defined(
        np.stack([weighted.ranking(p[:, c], truth[:, c], weights)[0] for c in range(p.shape[1])], axis=1)
    )


@pytest.mark.parametrize("clustered", [False, True])
def test_a_macro_difference_has_the_spread_of_a_bootstrap_over_groups(clustered):
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(250), 4) if clustered else np.arange(1000)
    labels = rng.choice(3, 250 if clustered else 1000, p=[0.7, 0.2, 0.1])[groups]
    truth = np.eye(3, dtype=bool)[labels]
    shared = rng.normal(size=(groups.max() + 1, 3))[groups]  # what is alike in the images of a group
    first = truth * 1.5 + shared + 0.3 * rng.normal(size=(1000, 3))
    second = truth * 1.2 + 0.7 * shared + 0.7 * rng.normal(size=(1000, 3))
    (one, ours), (two, theirs) = (macro_influence(p, truth, range(3)) for p in (first, second))
    weights = weighted.resample_weights(groups, 1500, numpy_generator(0, "bootstrap"))
    ones = np.ones((1000, 1))
    assert one - two == pytest.approx(float(macro(first, truth, ones)[0] - macro(second, truth, ones)[0]))
    drawn = macro(first, truth, weights) - macro(second, truth, weights)
    assert standard_error(ours - theirs, groups) == pytest.approx(drawn.std(), rel=0.08)
    alone = macro(first, truth, weights)
    assert standard_error(ours, groups) == pytest.approx(alone.std(), rel=0.08)
    if clustered:  # as if every image were a patient of its own it would look twice as sure
        assert standard_error(ours, np.arange(1000)) < 0.7 * alone.std()


def test_what_cannot_be_measured():
    scores = np.array([0.1, 0.2, 0.3])
    area, influence = auroc_influence(scores, np.array([False, False, False]))
    assert math.isnan(area) and not influence.any()
    area, influence = auroc_influence(scores, np.array([False, False, True]))
    assert area == 1.0 and standard_error(influence, np.arange(3)) == math.inf
    assert math.isnan(macro_influence(np.ones((3, 2)), np.zeros((3, 2), bool), [0, 1])[0])
