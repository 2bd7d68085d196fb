"""The calibration that sums of sites choose against the optimum that scipy finds on the pooled scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from fed_diffmic.training.calibration import choose, nll_sums, probabilities
from tests.training.test_calibration import TASKS, example, slow_nll


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_the_choice_lies_near_the_optimum(task: str, factor: float) -> None:
    """Within 0.01 nats an image of the best scale and weight of the prior, wherever these lie between grid points."""
    scores, labels, prior = example(5, 80, task, factor=factor)

    def loss(point: np.ndarray) -> float:
        return slow_nll(scores, labels, prior, task, float(np.exp(point[0])), float(point[1])) / len(scores)

    best = minimize(loss, [np.log(1 / factor), 0.0], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-5})
    chosen = choose(nll_sums(scores, labels, prior, task), len(scores), prior, task)
    ours = loss(np.array([np.log(chosen.scale), chosen.prior_weight]))
    assert best.fun - 1e-6 <= ours <= best.fun + 0.01
    said = probabilities(scores, chosen)
    if task != "multilabel":
        picked = said[np.arange(len(labels)), labels.astype(int)]
        assert -np.log(picked).mean() == pytest.approx(ours, abs=1e-6)
