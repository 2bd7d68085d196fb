"""Operating points: counted by hand, against scikit-learn's ROC curve, and their mirror image."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY, matrix_cell, sensitivity_at, specificity_at
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.operating import class_points


def two_classes(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray | None = None) -> Scored:
    """Predictions of two classes, the second with these probabilities."""
    p = np.stack([1 - scores, scores], axis=1)
    owners = np.arange(len(scores)) if groups is None else groups
    return Scored(p, p.argmax(axis=1), positive.astype(int), owners, "multiclass")


def test_points_are_those_counted_by_hand() -> None:
    # Ten with the class, twenty without. Above 0.85: 6 with and 2 without (specificity 0.9); one more without is too
    # many. For nine with it the cut must lie below 0.45, above which are 7 without: 13 of 20 are cleared.
    having = np.array([0.99, 0.97, 0.95, 0.93, 0.91, 0.89, 0.70, 0.60, 0.50, 0.10])
    lacking = np.array([0.96, 0.92, 0.80, 0.78, 0.65, 0.55, 0.52, *np.linspace(0.01, 0.40, 13)])
    scores = np.concatenate([having, lacking])
    positive = np.arange(30) < 10
    found = class_points(two_classes(scores, positive), ["without", "with"], bootstrap=0, seed=0)["with"]
    assert (found["n"], found["positives"]) == (30, 10)
    assert found[AT_SPECIFICITY] == {"value": 0.6, "low": None, "high": None}
    assert found[AT_SENSITIVITY] == {"value": 13 / 20, "low": None, "high": None}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=60),
    st.sampled_from([0.5, 0.8, 0.9, 0.95]),
)
def test_points_are_those_of_scikit_learns_curve(told: list[tuple[int, bool]], level: float) -> None:
    scores, positive = np.array([n / 12 for n, _ in told]), np.array([yes for _, yes in told])
    ones = np.ones((len(told), 1))
    found = sensitivity_at(scores, positive, ones, level)[0], specificity_at(scores, positive, ones, level)[0]
    if positive.all() or not positive.any():
        assert np.isnan(found).all()
        return
    alarms, hits, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert np.isclose(found[0], hits[alarms <= 1 - level + 1e-9].max())
    assert np.isclose(found[1], (1 - alarms[hits >= level - 1e-9]).max())


def test_intervals_draw_whole_groups_and_hold_the_value() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.4
    scores = np.clip(0.5 * positive + 0.6 * rng.random(200), 0, 1)
    single = class_points(two_classes(scores, positive), ["a", "b"], bootstrap=200, seed=1)["b"]
    for point in (AT_SPECIFICITY, AT_SENSITIVITY):
        assert single[point]["low"] <= single[point]["value"] <= single[point]["high"]
    # Every image four times under one owner says no more than once: resamples of owners are as wide as before.
    many = two_classes(np.repeat(scores, 4), np.repeat(positive, 4), np.repeat(np.arange(200), 4))
    widened = class_points(many, ["a", "b"], bootstrap=200, seed=1)["b"]
    assert widened[AT_SPECIFICITY] == single[AT_SPECIFICITY]


def test_what_is_not_there_is_undefined_and_the_matrix_has_both() -> None:
    scored = two_classes(np.array([0.2, 0.4, 0.9]), np.array([False, False, False]))
    assert class_points(scored, ["a", "b"], bootstrap=20, seed=0)["b"][AT_SPECIFICITY]["value"] is None
    both = two_classes(np.array([0.2, 0.4, 0.9, 0.8]), np.array([False, True, False, True]))
    cell = matrix_cell(both, ["a", "b"], bootstrap=0, seed=0, name="x")
    each = class_points(both, ["a", "b"], bootstrap=0, seed=0)
    for point in (AT_SPECIFICITY, AT_SENSITIVITY):
        assert cell[point]["value"] == np.mean([each[name][point]["value"] for name in ("a", "b")])
