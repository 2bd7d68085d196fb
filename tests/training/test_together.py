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


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("multiclass", {"bin/14/p": 4.0}),
        ("multiclass", {"bin/14/p": -3.0}),
        ("multiclass", {"called/0": 0.25, "called/1": -0.25}),
        ("multiclass", {"cleared/0": -1.0}),
        ("multilabel", {"bin/14/right": -1.0}),
    ],
    ids=["above its bin", "below its bin", "parts of an image", "called two classes", "labels that no image has"],
)
def test_totals_that_one_site_made_up_without_breaking_a_sum_of_images_are_refused(
    task: str, changes: dict[str, float]
) -> None:
    """A calibration error of a hundred would stand in the report, or an accuracy of parts of images."""
    sums = added(scored(task, 5))
    together(sums, CLASSES, task)
    with pytest.raises(ValueError, match="do not add up"):
        together(sums | {name: sums[name] + value for name, value in changes.items()}, CLASSES, task)


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
def test_one_image_one_class_and_ties_leave_undefined_what_is_not_defined(task: str) -> None:
    labels = np.ones((4, 3), int) if task == "multilabel" else np.full(4, 1)
    p = np.full((4, 3), 1 / 3)
    decided = p > 0.5 if task == "multilabel" else p.argmax(axis=1)
    for images in (1, 4):
        part = Scored(p[:images], decided[:images], labels[:images], np.arange(images), task)
        found = together(added(part), CLASSES, task)
        assert found["n"] == images and found["auroc_macro"] is None and found["accuracy"] == 0.0
        assert all(cell["auroc"] is None for cell in found["per_class"].values())


def test_an_image_that_weights_put_alone_in_a_cell_is_seen_in_the_totals() -> None:
    """A limit: counts are exact. In a plain run a site moves a count of one image to others (``training.few``)."""
    rows = np.tile([0.3, 0.3, 0.4], (20, 1))
    sites = [Scored(rows, rows.argmax(1), np.arange(20) % 3, np.arange(20), "multiclass") for _ in range(4)]
    rows = rows.copy()
    rows[7] = [0.0005, 0.9990, 0.0005]
    sites[2] = Scored(rows, rows.argmax(1), np.arange(20) % 3, np.arange(20), "multiclass")
    said, cell = added(*sites), int(cells_of(np.array([0.999]))[0])
    assert (said[f"cell/1/1/{cell}"], said[f"cell/1/0/{cell}"], said["bin/14/n"]) == (1.0, 0.0, 1.0)  # it is of class 1
