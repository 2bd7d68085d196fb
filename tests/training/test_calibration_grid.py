"""The calibration grid's sums, many scales at once, against one point at a time by scipy: equal bit for bit."""

import numpy as np
import pytest
from scipy.special import log_expit, log_softmax, logit

from fed_diffmic.training import calibration
from fed_diffmic.training.calibration import TASKS, grid, nll_sums


def slow_sums(scores, labels, prior, task):
    """One point of the grid at a time."""
    points = grid(task, blended=scores.ndim == 3)
    sums = np.zeros(points.shape)
    for i, scale in enumerate(points.scales):
        for j, (blend, weight) in enumerate(points.columns):
            mixed = (1 - blend) * scores[:, 0] + blend * scores[:, 1] if scores.ndim == 3 else scores
            exponent = scale * mixed + weight * (logit(prior) if task == "multilabel" else np.log(prior))
            if task == "multilabel":
                each = -log_expit(np.where(labels > 0, exponent, -exponent)).sum(axis=1)
            else:
                each = -log_softmax(exponent, axis=1)[np.arange(len(labels)), labels]
            sums[i, j] = np.rint(each * 2.0**20).sum()
    return sums / 2.0**20


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("images", [0, 1, 7, 60])
def test_many_scales_at_once_equal_one_point_at_a_time(task, images, blended, monkeypatch):
    rng, classes = np.random.default_rng(images), 9
    scores = 40 * rng.normal(size=(images, 2, classes) if blended else (images, classes))
    labels = rng.integers(0, 2 if task == "multilabel" else classes, (images, classes)[: 1 + (task == "multilabel")])
    prior = rng.uniform(0.05, 0.4, classes)
    wanted = slow_sums(scores, labels, prior, task)
    assert np.array_equal(nll_sums(scores, labels, prior, task), wanted)
    for numbers in (1, 2000):  # one scale at a time, and a last part that is shorter than the others
        monkeypatch.setattr(calibration, "_AT_ONCE", numbers)
        assert np.array_equal(nll_sums(scores, labels, prior, task), wanted)


def test_scores_too_large_for_a_scale_are_no_likelihood():
    """Scores near the largest float overflow at the larger scales: what comes out is no number, as scipy's is not."""
    scores, labels, prior = np.array([[1e307, 0.0, -1e307]]), np.array([0]), np.full(3, 1 / 3)
    with np.errstate(all="ignore"):
        found, wanted = nll_sums(scores, labels, prior, "multiclass"), slow_sums(scores, labels, prior, "multiclass")
    assert np.isnan(wanted).any() and np.array_equal(found, wanted, equal_nan=True)
