"""Prediction sets: by hand, against another implementation, and that they cover whatever the grid and the sites."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.training import conformal
from fed_diffmic.training.conformal import CELLS, Rule


def drawn(rng, n, classes=4, sharp=2.0):
    """Probabilities of a model that is right as often as it says."""
    p = rng.dirichlet(np.full(classes, 1 / sharp), n)
    labels = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return p, labels


def test_scores_and_cells_by_hand():
    p = np.array([[0.5, 0.3, 0.2], [0.25, 0.25, 0.5]])
    np.testing.assert_allclose(conformal.scores(p, "multiclass", "lac")[:, 0], [[0.5, 0.7, 0.8], [0.75, 0.75, 0.5]])
    # classes of equal probability have equal scores: their order says nothing
    np.testing.assert_allclose(conformal.scores(p, "multiclass", "aps")[:, 0], [[0.5, 0.8, 1.0], [1.0, 1.0, 0.5]])
    np.testing.assert_allclose(conformal.scores(p, "multilabel", "lac")[0], [[0.5, 0.5], [0.3, 0.7], [0.2, 0.8]])
    np.testing.assert_array_equal(
        conformal.cells([0.0, 1e-9, 1 / CELLS, 1.5 / CELLS, 1.0, 1 + 1e-12]), [0, 1, 1, 2, CELLS, CELLS]
    )
    with pytest.raises(ValueError, match="not finite"):
        conformal.cells([np.nan])
    with pytest.raises(ValueError, match="aps"):
        conformal.scores(p, "multilabel", "aps")


def test_counts_tell_each_image_once_under_its_true_state():
    p, labels = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), np.array([1, 2])
    table = conformal.counts(p, labels, "multiclass", "lac")
    assert table.shape == (1, 4, CELLS + 1) and table.sum() == 2
    assert table[0, 1, 140] == 1 and table[0, 2, 40] == 1
    several = conformal.counts(p, np.array([[1, 0, 0], [0, 0, 1]]), "multilabel", "lac")
    assert several.shape == (3, 3, CELLS + 1) and (several.sum(axis=(1, 2)) == 2).all()
    assert several[0, 1, 100] == 1 and several[0, 0, 20] == 1  # label 0: present at 0.5, absent at 0.1


@pytest.mark.parametrize(
    ("n", "level", "rank"), [(9, 0.9, 9), (8, 0.9, None), (19, 0.95, 19), (18, 0.95, None), (99, 0.9, 90)]
)
def test_the_rank_is_exact_and_missing_where_there_are_too_few(n, level, rank):
    """``n < 1 / alpha - 1``: nothing is promised by fewer than all classes."""
    assert conformal.rank_of(n, level) == rank
    row = np.bincount(np.arange(n), minlength=CELLS + 1)
    assert conformal.threshold(row, level) == (CELLS if rank is None else rank - 1)


@pytest.mark.parametrize("method", conformal.METHODS)
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_thresholds_of_added_counts_are_those_of_pooled_scores_rounded_up_to_the_cell(method, level):
    rng = np.random.default_rng(1)
    p, labels = drawn(rng, 333)
    parts = np.split(np.arange(333), [20, 120])
    rule = conformal.fit([conformal.counts(p[i], labels[i], "multiclass", method) for i in parts], method, level)
    own = conformal.scores(p, "multiclass", method)[np.arange(333), 0, labels]
    pooled = np.sort(own)[math.ceil(334 * level) - 1]
    assert rule.overall == (math.ceil(pooled * CELLS - 1e-9),)
    for c in range(4):
        some = np.sort(own[labels == c])
        assert rule.by_state[0][c] == math.ceil(some[math.ceil((len(some) + 1) * level) - 1] * CELLS - 1e-9)


class Told:
    """A classifier that says what it is given: what MAPIE asks of one."""

    classes_ = np.arange(4)

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return np.asarray(x)

    def predict(self, x):
        return np.asarray(x).argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True


def test_sets_are_those_of_another_implementation_but_for_scores_in_one_cell():
    """MAPIE's ``lac``; its ``aps`` takes a random number off each score, which is no part of ours."""
    classification = pytest.importorskip("mapie.classification")
    from sklearn.base import BaseEstimator, ClassifierMixin

    model = type("Model", (ClassifierMixin, Told, BaseEstimator), {})()
    rng = np.random.default_rng(2)
    p, labels = drawn(rng, 500)
    new, _ = drawn(rng, 400)
    other = classification.SplitConformalClassifier(model, confidence_level=0.9, conformity_score="lac", prefit=True)
    _, theirs = other.conformalize(p, labels).predict_set(new)
    rule = conformal.fit([conformal.counts(p, labels, "multiclass", "lac")], "lac", 0.9)
    ours = conformal.members(new, "multiclass", rule)[:, 0]
    differ = ours != theirs[:, :, 0]
    near = np.abs(1 - new - rule.overall[0] / CELLS) <= 1 / CELLS  # within a cell of the threshold
    assert near[differ].all() and differ.mean() < 0.02 and ours.any() and not ours.all()
    assert (ours >= theirs[:, :, 0]).all(), "rounded up"


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sites=st.integers(1, 5),
    level=st.sampled_from([0.8, 0.9]),
    cells=st.sampled_from([3, 17, 200]),
    method=st.sampled_from(conformal.METHODS),
)
def test_coverage_is_as_promised_for_any_grid_and_any_split_over_sites(seed, sites, level, cells, method):
    """Over many draws of validation and new images; a fault of one in the rank or a grid rounded down is seen."""
    rng, before = np.random.default_rng(seed), conformal.CELLS
    conformal.CELLS = cells
    try:
        hits = []
        for _ in range(60):
            p, labels = drawn(rng, 30 + 40, sharp=1.0)
            parts = [p_ for p_ in np.array_split(rng.permutation(30), sites) if len(p_)]
            tables = [conformal.counts(p[i], labels[i], "multiclass", method) for i in parts]
            sets = conformal.members(p[30:], "multiclass", conformal.fit(tables, method, level))
            hits.append(conformal.covered(sets, labels[30:], "multiclass").mean())
    finally:
        conformal.CELLS = before
    assert np.mean(hits) > level - 4 * np.std(hits) / math.sqrt(len(hits))


def test_coverage_is_nominal_and_not_more_where_scores_have_no_ties():
    """29 images at 0.9: rank 27 of 30, so that exactly 0.9 are covered on average."""
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(800):
        p, labels = drawn(rng, 59, sharp=1.0)
        rule = conformal.fit([conformal.counts(p[:29], labels[:29], "multiclass", "lac")], "lac", 0.9)
        hits.append(conformal.covered(conformal.members(p[29:], "multiclass", rule), labels[29:], "multiclass").mean())
    assert np.mean(hits) == pytest.approx(0.9, abs=0.008)


def test_sets_by_class_cover_each_class_and_hold_every_class_that_has_too_few():
    rng = np.random.default_rng(6)
    p, labels = drawn(rng, 4000)
    few = np.flatnonzero(labels == 3)[:5]
    chosen = np.concatenate([np.flatnonzero(labels[:1500] != 3), few])
    rule = conformal.fit([conformal.counts(p[chosen], labels[chosen], "multiclass", "lac")], "lac", 0.9)
    assert rule.by_state[0][3] == CELLS > max(rule.by_state[0][:3])
    sets = conformal.members(p[1500:], "multiclass", rule, by_state=True)
    hit = conformal.covered(sets, labels[1500:], "multiclass")[:, 0]
    for c in range(3):
        assert hit[labels[1500:] == c].mean() > 0.86
    assert hit[labels[1500:] == 3].all() and sets[:, 0, 3].all()


def test_each_label_of_several_is_covered():
    rng = np.random.default_rng(7)
    p = rng.random((3000, 3))
    labels = (rng.random((3000, 3)) < p).astype(np.float32)
    rule = conformal.fit([conformal.counts(p[:1000], labels[:1000], "multilabel", "lac")], "lac", 0.9)
    sets = conformal.members(p[1000:], "multilabel", rule)
    assert sets.shape == (2000, 3, 2)
    hit = conformal.covered(sets, labels[1000:], "multilabel")
    assert (np.abs(hit.mean(axis=0) - 0.9) < 0.04).all()


def test_one_site_that_says_its_scores_are_all_small_makes_no_set_smaller():
    rng = np.random.default_rng(8)
    honest = []
    for _ in range(3):
        p, labels = drawn(rng, 200)
        honest.append(conformal.counts(p, labels, "multiclass", "lac"))
    liar = np.zeros_like(honest[0])
    liar[0, 0, 0] = 50_000
    fair = conformal.fit(honest, "lac", 0.9).overall[0]
    assert conformal.fit([*honest, liar], "lac", 0.9).overall[0] == 0
    assert conformal.fit([*honest, liar], "lac", 0.9, guarded=True).overall[0] >= fair
    with pytest.raises(ValueError, match="no counts"):
        conformal.fit([], "lac", 0.9)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "other"},
        {"level": 1.5},
        {"overall": [CELLS + 1]},
        {"overall": [True]},
        {"by_state": [[1, 2]]},
        {"more": 1},
    ],
)
def test_a_rule_is_read_as_it_was_written_and_nothing_else(change):
    rule = Rule("aps", 0.9, (7,), ((1, 2, CELLS),))
    assert Rule.from_json(rule.to_json(), "multiclass", 3) == rule
    with pytest.raises(ValueError, match="rule"):
        Rule.from_json({**rule.to_json(), **change}, "multiclass", 3)
