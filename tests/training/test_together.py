"""Figures over sites' test images together are those of the images themselves, from counts alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY, matrix_cell
from fed_diffmic.training.metrics import Scored, weighted_metrics
from fed_diffmic.training.pooled import cells_of
from fed_diffmic.training.together import IMAGES, count_names, site_sums, sum_names, together

CLASSES = ["a", "b", "c"]


def scored(task: str, seed: int, images: int = 60) -> Scored:
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, (images, 3))
    if task == "multilabel":
        p = 1 / (1 + np.exp(-odds))
        return Scored(p, p > 0.5, (rng.random((images, 3)) < p * 0.7 + 0.1).astype(int), np.arange(images), task)
    p = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    labels = np.where(rng.random(images) < 0.6, p.argmax(axis=1), rng.integers(0, 3, images))
    return Scored(p, p.argmax(axis=1), labels, np.arange(images), task)


def added(*sites: Scored) -> dict[str, float]:
    sums = [site_sums(site) for site in sites]
    assert all(set(one) == {IMAGES, *count_names(3), *sum_names()} for one in sums)
    return {name: sum(one[name] for one in sums) for name in sums[0]}


def merged(*sites: Scored) -> Scored:
    parts = {name: np.concatenate([getattr(s, name) for s in sites]) for name in ("probabilities", "decided", "labels")}
    return Scored(**parts, groups=np.arange(len(parts["labels"])), task=sites[0].task)


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
@given(seed=st.integers(0, 2**20), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
def test_the_totals_give_what_all_images_together_give(task: str, seed: int, sizes: list[int]) -> None:
    sites = [scored(task, seed + n, images) for n, images in enumerate(sizes)]
    whole, found = merged(*sites), together(added(*sites), CLASSES, task)
    point = {
        name: float(values[0])
        for name, values in weighted_metrics(whole, np.ones((len(whole.labels), 1))).items()
        if values.ndim == 1
    }
    for name in ("accuracy", "balanced_accuracy", "ece"):
        assert found[name] == (None if np.isnan(point[name]) else pytest.approx(point[name], abs=1e-9))
    assert found["n"] == sum(sizes)
    for c, name in enumerate(CLASSES):
        truth = whole.labels[:, c] if task == "multilabel" else whole.labels == c
        cell = found["per_class"][name]
        assert cell["positives"] == truth.sum()
        if 0 < truth.sum() < len(truth):
            assert cell["auroc"] == pytest.approx(roc_auc_score(truth, cells_of(whole.probabilities[:, c])))


def test_balanced_accuracy_and_points_against_others() -> None:
    sites = [scored("multiclass", n) for n in range(3)]
    whole, found = merged(*sites), together(added(*sites), CLASSES, "multiclass")
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(whole.labels, whole.decided))
    cell = matrix_cell(whole, CLASSES, bootstrap=0, seed=0, name="all")
    assert abs(cell["auroc_macro"]["value"] - found["auroc_macro"]) < 0.01
    for point in (AT_SPECIFICITY, AT_SENSITIVITY):  # a threshold at an edge reaches no more than one anywhere
        mean = np.mean([found["per_class"][name][point] for name in CLASSES])
        assert cell[point]["value"] - 0.1 < mean <= cell[point]["value"]


@pytest.mark.parametrize("name", ["cell/1/0/40", "called/0", "cleared/2", "bin/3/n", "bin/14/right", IMAGES])
def test_totals_that_do_not_add_up_are_refused(name: str) -> None:
    sums = added(scored("multiclass", 5))
    with pytest.raises(ValueError, match="do not add up"):
        together(sums | {name: sums[name] + 61}, CLASSES, "multiclass")
