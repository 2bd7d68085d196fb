"""Cells of the cross-site matrix: sensitivity at a specificity against hand and brute force, what may be compared."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.training.matrix import cell_from, cell_metrics, comparable, matrix_cell, rarest, sensitivity_at
from fed_diffmic.training.metrics import Scored


def at(scores, positive, specificity, weights=None):
    w = np.ones((len(scores), 1)) if weights is None else np.asarray(weights, dtype=float)[:, None]
    return float(sensitivity_at(np.array(scores), np.array(positive, dtype=bool), w, specificity)[0])


def test_by_hand():
    """Ten negatives at 0..9, positives at 8.5, 7.5, 3.5: one false alarm is allowed at 0.9, so the cut is at 8.5."""
    scores, positive = [*range(10), 8.5, 7.5, 3.5], [0] * 10 + [1, 1, 1]
    assert at(scores, positive, 0.9) == pytest.approx(1 / 3)
    assert at(scores, positive, 0.8) == pytest.approx(2 / 3)
    assert at(scores, positive, 1.0) == 0.0
    assert at(scores, positive, 0.4) == 1.0
    assert np.isnan(at([1.0, 2.0], [1, 1], 0.9)) and np.isnan(at([1.0, 2.0], [0, 0], 0.9))
    assert np.isnan(at([], [], 0.9))


def brute(scores, positive, weights, specificity):
    best = np.nan
    for cut in [np.inf, *scores]:
        called = scores >= cut
        negatives, positives = weights[~positive].sum(), weights[positive].sum()
        if not negatives or not positives:
            return np.nan
        if weights[~positive & ~called].sum() / negatives >= specificity - 1e-12:
            best = np.nanmax([best, weights[positive & called].sum() / positives])
    return best


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    data=st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30),
    specificity=st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0]),
)
def test_against_every_threshold_with_ties_and_weights(data, specificity):
    scores, positive, weights = (np.array(column) for column in zip(*data, strict=True))
    ours = at(scores.astype(float), positive, specificity, weights)
    assert ours == pytest.approx(brute(scores, positive, weights.astype(float), specificity), nan_ok=True)


def scored(labels, seed=0, classes=3):
    p = np.random.default_rng(seed).dirichlet(np.ones(classes), len(labels))
    return Scored(p, p.argmax(1), np.array(labels), np.arange(len(labels)) // 2, "multiclass")


def test_a_cell_says_what_it_stands_on():
    cell = matrix_cell(scored([0] * 12 + [1] * 11), ["a", "b", "c"], bootstrap=50, seed=1, name="x")
    assert cell["n"] == 23 and cell["groups"] == 12 and cell["positives"] == {"a": 12, "b": 11, "c": 0}
    assert cell["classes"] == ["a", "b"] and cell["ranked"] is True
    for name in ("balanced_accuracy", "auroc_macro", "ece", "sensitivity_at_specificity"):
        assert cell[name]["low"] <= cell[name]["value"] <= cell[name]["high"]
    assert cell == matrix_cell(scored([0] * 12 + [1] * 11), ["a", "b", "c"], bootstrap=50, seed=1, name="x")
    few = matrix_cell(scored([0] * 12 + [1] * 9), ["a", "b", "c"], bootstrap=0, seed=1, name="x")
    assert few["ranked"] is False and few["auroc_macro"]["low"] is None
    lone = matrix_cell(scored([2] * 20), ["a", "b", "c"], bootstrap=10, seed=1, name="x")
    assert lone["classes"] == [] and lone["auroc_macro"]["value"] is None
    assert lone["sensitivity_at_specificity"]["value"] is None


def test_columns_are_comparable_where_their_classes_are_the_same():
    cells = {
        s: {"classes": c} for s, c in (("x", ["a", "b"]), ("y", ["a"]), ("z", ["a", "b"]), ("all", ["a", "b", "c"]))
    }
    assert comparable({"m": cells}) == [["x", "z"], ["all"], ["y"]]
    assert comparable({}) == []


def test_a_cell_travels_as_flat_numbers():
    classes = ["a", "b", "c"]
    for labels in ([0] * 12 + [1] * 11, [0] * 5 + [2]):
        cell = matrix_cell(scored(labels), classes, bootstrap=50, seed=1, name="x")
        metrics = cell_metrics(cell, classes)
        assert all(name.startswith("test/") and type(value) is float for name, value in metrics.items())
        assert cell_from(metrics, classes) == {**cell, "complete": True}


def test_where_counts_were_kept_back_nothing_is_compared_or_ranked():
    classes = ["a", "b", "c"]
    cell = matrix_cell(scored([0] * 12 + [1] * 11 + [2] * 3), classes, bootstrap=0, seed=1, name="x")
    whole = cell_metrics(cell, classes)
    kept_back = {n: v for n, v in {**whole, "test/complete": 0.0}.items() if n != "test/positives/2"}
    found = cell_from(kept_back, classes)
    assert (found["classes"], found["ranked"], found["complete"]) == ([], False, False)
    assert found["positives"] == {"a": 12, "b": 11, "c": None}  # kept back is not none at all
    assert rarest(found) is None and rarest(cell_from(whole, classes)) == 3
    claimed = {name: value for name, value in whole.items() if name != "test/positives/2"}  # and yet said to be whole
    assert not cell_from(claimed, classes)["complete"]
    silent = cell_from({}, classes)
    assert (
        silent["n"] == 0
        and not silent["ranked"]
        and silent["auroc_macro"] == {"value": None, "low": None, "high": None}
    )
    row = {"one": found, "two": cell_from(kept_back, classes), "three": cell_from(whole, classes)}
    assert comparable({"model": row}) == [["one"], ["three"], ["two"]]
