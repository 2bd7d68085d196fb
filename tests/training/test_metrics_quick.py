"""What a site says of every round against all metrics at once: equal bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.training.metrics import TASKS, Scored, number, quick, weighted_metrics


@settings(max_examples=80, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    images=st.integers(1, 40),
    classes=st.integers(2, 11),
    steps=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 10_000),
)
def test_quick_equals_the_weighted_metrics(task, images, classes, steps, seed):
    """Few steps of probability: many ties; few images: classes that are missing."""
    rng = np.random.default_rng(seed)
    p = rng.integers(1, steps + 1, (images, classes)) / (steps + 1)
    if task == "multilabel":
        labels, decided = rng.random((images, classes)) < 0.4, p > 0.5
    else:
        p /= p.sum(axis=1, keepdims=True)
        labels, decided = rng.integers(0, classes, images), p.argmax(axis=1)
    found = weighted_metrics(Scored(p, decided, labels, np.arange(images), task), np.ones((images, 1)))
    names = ("auroc_macro", "balanced_accuracy", "accuracy")
    assert quick(p, labels, task) == {name: number(found[name][0]) for name in names}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_what_one_class_alone_leaves_undefined(task):
    labels = np.zeros((4, 1), bool) if task == "multilabel" else np.zeros(4, int)
    assert quick(np.full((4, 1), 1.0), labels, task)["auroc_macro"] is None
