"""Measures of uncertainty by hand; the test of them against scikit-learn and a bootstrap; operating points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from fed_diffmic.training import uncertainty
from fed_diffmic.training.binomial import clopper_pearson, design_effect, share
from fed_diffmic.training.conformal import CELLS, cells
from fed_diffmic.training.uncertainty import Measured, error_auroc, measured, referral


def table_of(values, wrong):
    return np.stack([np.bincount(cells(values[wrong == k]), minlength=CELLS + 1) for k in (False, True)])


def test_measures_by_hand():
    p = np.array([[0.5, 0.5, 0.0, 0.0], [0.25] * 4, [1.0, 0, 0, 0]])
    np.testing.assert_allclose(uncertainty.entropy(p, "multiclass"), [0.5, 1.0, 0.0])
    np.testing.assert_allclose(uncertainty.entropy(np.array([[0.5, 1.0], [0.0, 1.0]]), "multilabel"), [0.5, 0.0])
    one, other = np.array([[1.0, 0, 0], [0.6, 0.4, 0]]), np.array([[0, 1.0, 0], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(uncertainty.disagreement(one, other, "multiclass"), [1.0, 0.2])
    np.testing.assert_allclose(uncertainty.disagreement(one, other, "multilabel"), [2 / 3, 0.4 / 3])
    np.testing.assert_allclose(uncertainty.spread(np.array([[[1.0, 0], [0, 0]], [[0.3, 0.7], [0.3, 0.7]]])), [0.25, 0])
    np.testing.assert_array_equal(uncertainty.wrong(np.array([0, 1]), np.array([0, 2]), "multiclass"), [False, True])
    said, true = np.array([[True, False], [True, True]]), np.array([[1.0, 0], [1.0, 0]])
    np.testing.assert_array_equal(uncertainty.wrong(said, true, "multilabel"), [False, True])


@given(seed=st.integers(0, 1000), n=st.integers(4, 200))
def test_the_area_is_that_of_the_images_themselves(seed, n):
    rng = np.random.default_rng(seed)
    values, wrong = rng.random(n).round(1), rng.random(n) < 0.4
    found = error_auroc(table_of(values, wrong))
    if wrong.all() or not wrong.any():
        assert found is None
    else:
        assert found[0] == pytest.approx(roc_auc_score(wrong, cells(values)))


def test_the_interval_is_that_of_a_bootstrap():
    rng = np.random.default_rng(3)
    wrong = rng.random(400) < 0.3
    values = np.clip(rng.normal(0.4 + 0.15 * wrong, 0.2), 0, 1)
    _, variance = error_auroc(table_of(values, wrong))
    draws = []
    for _ in range(600):
        i = rng.integers(0, 400, 400)
        draws.append(roc_auc_score(wrong[i], values[i]))
    assert np.sqrt(variance) == pytest.approx(np.std(draws), rel=0.12)


def test_a_measure_is_offered_only_where_it_ranks_errors_above_chance():
    rng = np.random.default_rng(4)
    wrong = rng.random(300) < 0.3
    good, coin = np.clip(rng.normal(0.4 + 0.3 * wrong, 0.2), 0, 1), rng.random(300)
    assert measured("entropy", table_of(good, wrong)).offered
    assert not measured("entropy", table_of(coin, wrong)).offered
    assert not measured("entropy", table_of(1 - good, wrong)).offered, "worse than a coin"
    # ten images of each patient are as good as one: the interval grows
    some = measured("entropy", table_of(np.clip(rng.normal(0.4 + 0.08 * wrong, 0.2), 0, 1), wrong))
    wide = measured("entropy", table_of(np.clip(rng.normal(0.4 + 0.08 * wrong, 0.2), 0, 1), wrong), effect=10.0)
    assert wide.high - wide.low > 2 * (some.high - some.low)
    # nine errors, all found, are no test
    nine = np.arange(300) < 9
    assert measured("entropy", table_of(nine.astype(float), nine)).low == 1.0
    assert not measured("entropy", table_of(nine.astype(float), nine)).offered


def test_operating_points_refer_no_more_than_asked_and_say_how_often_the_rest_are_wrong():
    rng = np.random.default_rng(5)
    values, wrong = rng.random(1000), rng.random(1000) < 0.2
    table = table_of(values, wrong)
    for asked in (0.05, 0.15, 0.5):
        point = referral(table, asked)
        kept = cells(values) <= point.cell
        assert 1 - kept.mean() == pytest.approx(point.referred) and asked - 0.02 < point.referred <= asked
        assert (point.kept, point.risk) == (kept.sum(), pytest.approx(wrong[kept].mean()))
        expected = binomtest(int(wrong[kept].sum()), int(kept.sum())).proportion_ci(method="exact")
        assert (point.low, point.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert referral(np.zeros((2, CELLS + 1), int), 0.1) is None
    alike = np.zeros((2, CELLS + 1), int)
    alike[0, 40], alike[1, 40] = 8, 2
    assert referral(alike, 0.5).referred == 0, "who cannot be told apart is not referred"


def test_the_area_under_the_risk_coverage_curve_by_hand():
    table = np.zeros((2, CELLS + 1), int)
    table[0, 10], table[1, 20], table[0, 30] = 2, 1, 1
    coverage, risk = uncertainty.risk_coverage(table)
    np.testing.assert_allclose(coverage, [0.5, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0, 1 / 3, 1 / 4])
    assert uncertainty.aurc(table) == pytest.approx(0.25 * (1 / 6) + 0.25 * (1 / 3 + 1 / 4) / 2)
    assert uncertainty.aurc(table * 0) is None
    sorted_ = np.zeros((2, CELLS + 1), int)
    sorted_[0, 10], sorted_[1, 20] = 3, 1
    assert uncertainty.aurc(sorted_) < uncertainty.aurc(sorted_[::-1])


@pytest.mark.parametrize(
    "change",
    [{"measure": "gut"}, {"n": 1.5}, {"low": 2.0}, {"referrals": [{}]}, {"more": 1}, {"referrals": 3}],
)
def test_a_measure_is_read_as_it_was_written_and_nothing_else(change):
    rng = np.random.default_rng(6)
    found = measured("spread", table_of(rng.random(50), rng.random(50) < 0.3))
    assert Measured.from_json(found.to_json()) == found and found.at(0.15).share == 0.15 and found.at(0.4) is None
    with pytest.raises((ValueError, TypeError)):
        Measured.from_json({**found.to_json(), **change})


def test_shares_have_exact_intervals_widened_for_images_of_one_patient():
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert clopper_pearson(10, 10)[1] == 1.0 and clopper_pearson(0, 0) == (0.0, 1.0)
    groups = np.array(["a"] * 3 + ["b"])
    assert design_effect(groups) == pytest.approx((9 + 1) / 4) and design_effect(np.arange(5)) == 1.0
    value, low, high = share(np.array([True] * 30 + [False] * 10), np.repeat(np.arange(10), 4))
    assert value == 0.75 and (low, high) == clopper_pearson(7.5, 10)
    assert share(np.zeros(0, bool), np.zeros(0)) == (None, None, None)
