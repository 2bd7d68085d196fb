"""Bootstrap intervals against ``scipy.stats.bootstrap``, whose data are the groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fed_diffmic.training.metrics import compute_metrics

RESAMPLES = 4000
CLASSES = ("a", "b", "c")


@pytest.mark.parametrize("metric", ["accuracy", "brier", "balanced_accuracy"])
@pytest.mark.parametrize("largest", [1, 5])
def test_intervals_are_those_of_scipys_percentile_bootstrap_over_groups(metric: str, largest: int) -> None:
    """Each end within a sixth of the standard error; two ends of 4,000 resamples differ by a twentieth by chance."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(50), rng.integers(1, largest + 1, 50))
    rng.shuffle(groups)  # a group's images do not lie together
    labels = rng.integers(0, 3, len(groups))
    p = rng.dirichlet(np.full(3, 1.0), len(groups)) + 0.6 * np.eye(3)[labels]
    p /= p.sum(axis=1, keepdims=True)
    decided = p.argmax(axis=1)
    found = compute_metrics(p, decided, labels, groups, task="multiclass", classes=CLASSES, bootstrap=RESAMPLES, seed=1)

    truth = np.eye(3)[labels]
    value = {
        "accuracy": (decided == labels)[:, None] / 1.0,
        "brier": ((p - truth) ** 2).sum(axis=1, keepdims=True),
        "balanced_accuracy": truth * (decided == labels)[:, None],
    }[metric]
    weight = truth if metric == "balanced_accuracy" else np.ones((len(groups), 1))
    of_group = np.eye(50)[:, groups]
    sums, counts = of_group @ value, of_group @ weight  # (groups, classes or 1)

    def statistic(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray((sums[chosen].sum(axis=axis - 1) / counts[chosen].sum(axis=axis - 1)).mean(axis=-1))

    theirs = stats.bootstrap(
        (np.arange(50),), statistic, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(2)
    )
    assert found[metric]["value"] == pytest.approx(statistic(np.arange(50)))
    low, high = theirs.confidence_interval
    assert (found[metric]["low"], found[metric]["high"]) == pytest.approx((low, high), abs=theirs.standard_error / 6)
