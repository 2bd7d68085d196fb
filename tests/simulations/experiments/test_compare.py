"""The statistics against numbers worked out by hand, and against what they are for."""

import math

import markdown
import numpy as np
import pytest

from simulations.experiments.answer import STAR, gap_text
from simulations.experiments.compare import (
    Difference,
    critical_difference,
    difference,
    holm,
    metrics,
    over_sites,
    positives,
    ratio_of_means,
)


def test_the_corrected_interval_by_hand():
    """Gaps 0.1, 0.2, 0.3: mean 0.2, s = 0.1; with a ratio of 1/4: 0.1 * sqrt(1/3 + 1/4); t_2(0.975) = 4.302653."""
    gap = difference(np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.5, 0.5]), 0.25)
    reach = 4.302652729911275 * 0.1 * math.sqrt(1 / 3 + 1 / 4)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.2, 0.2 - reach, 0.2 + reach))
    assert gap.verdict == "not shown" and gap.wins == 3
    plain = difference(np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.5, 0.5]), 0.0)
    from scipy import stats

    expected = stats.ttest_rel([0.6, 0.7, 0.8], [0.5, 0.5, 0.5])
    assert plain.p == pytest.approx(expected.pvalue)
    assert (plain.low, plain.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_verdicts_and_what_is_not_defined():
    up, nought = np.array([0.70, 0.71, 0.72, 0.70]), np.array([0.5, 0.51, 0.5, 0.5])
    assert difference(up, nought, 0.25).verdict == "above" and difference(nought, up, 0.25).verdict == "below"
    assert difference(np.array([0.5, np.nan]), np.array([0.4, 0.3]), 0.25) is None
    same = difference(nought, nought, 0.25)
    assert (same.mean, same.p, same.verdict) == (0.0, 1.0, "not shown")
    assert difference(nought + 0.5, nought, 0.25).p < 1e-6


def test_overlapping_splits_do_not_make_chance_look_like_a_difference():
    """Two methods of the same true accuracy, ten splits of one data set: the plain t-test is wrong far too often."""
    rng = np.random.default_rng(0)
    plain, corrected = 0, 0
    for _ in range(400):
        images = rng.random((2, 200)) < 0.7  # whether each method is right on each image
        tests = [rng.permutation(200)[:40] for _ in range(10)]
        ours, other = (np.array([images[m, t].mean() for t in tests]) for m in (0, 1))
        plain += difference(ours, other, 0.0).verdict != "not shown"
        corrected += difference(ours, other, 0.25).verdict != "not shown"
    assert plain > 0.2 * 400 > 0.13 * 400 > corrected


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_metrics_over_the_classes_that_count():
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
    tensors = {"m|s|probabilities": p, "m|s|decided": p.argmax(1), "s|labels": np.array([0, 1, 1, 1, 2])}
    assert positives(tensors, "s", 3).sum(axis=0).tolist() == [1, 3, 1]
    accuracy, auroc = metrics(tensors, "m", "s", np.array([0, 1]))
    assert accuracy == pytest.approx((1 + 2 / 3) / 2)
    # class 0: 0.8 is above all; class 1: 0.7, 0.3, 0.8 against 0.1, 0.2: all above
    assert auroc == pytest.approx(1.0)
    assert all(math.isnan(v) for v in metrics(tensors, "m", "s", np.array([], dtype=int)))
    accuracy, auroc = metrics(tensors, "m", "s", np.array([1]))  # recall of one class: no balanced accuracy
    assert math.isnan(accuracy) and auroc == pytest.approx(1.0)


def test_a_mean_as_a_part_of_another():
    assert ratio_of_means(np.array([0.4, np.nan]), np.array([0.8])) == pytest.approx(0.5)
    assert math.isnan(ratio_of_means(np.array([0.4]), np.array([0.0])))
    assert math.isnan(ratio_of_means(np.array([0.4]), np.array([np.nan])))


def test_metrics_of_several_labels_count_both_recalls():
    p = np.array([[0.9, 0.2], [0.4, 0.7], [0.6, 0.1], [0.1, 0.3]])
    tensors = {"m|s|probabilities": p, "m|s|decided": (p > 0.5).astype(np.int8)}
    tensors["s|labels"] = np.array([[1, 0], [1, 1], [0, 0], [0, 0]], np.float32)
    accuracy, auroc = metrics(tensors, "m", "s", np.array([0, 1]))
    assert accuracy == pytest.approx(((0.5 + 0.5) / 2 + 1.0) / 2)
    assert auroc == pytest.approx((0.75 + 1.0) / 2)
    assert metrics(tensors, "m", "s", np.array([0]))[0] == pytest.approx(0.5)  # both its recalls


def test_over_sites_leaves_out_what_is_not_defined():
    each = np.array([[0.5, np.nan, np.nan], [0.7, 0.6, np.nan]])
    np.testing.assert_allclose(over_sites(each, np.nanmean), [0.6, 0.6, np.nan])
    np.testing.assert_allclose(over_sites(each, np.nanmin), [0.5, 0.6, np.nan])


def test_critical_difference_of_demsars_example():
    """Demsar 2006, section 3.2.3: four classifiers, 14 data sets: q = 2.569, CD = 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_two_gaps_in_one_paragraph_keep_their_stars_when_a_page_is_made_of_them():
    """Two asterisks were a pair to Markdown: the words between became italics and both marks were gone."""
    shown = Difference(mean=0.1, low=0.05, high=0.15, p=0.001, wins=3, adjusted=0.002)
    hidden = Difference(mean=0.1, low=-0.05, high=0.25, p=0.2, wins=2, adjusted=0.4)
    page = markdown.markdown(f"**{gap_text(shown)}, then {gap_text(hidden)}, then {gap_text(shown)}**")
    assert "<em>" not in page and page.count(STAR) == 2 and page.count(f"above{STAR}") == 2
