"""Which round is the best one."""

from __future__ import annotations

import pytest

from server.selection import selection_score, weighted_mean


def test_selection_prefers_defined_metrics_and_weights_by_images() -> None:
    metrics = {
        "a": {"num_examples": 30.0, "auroc_macro": 0.9, "loss": 1.0},
        "b": {"num_examples": 10.0, "auroc_macro": 0.5, "loss": 2.0},
        "c": {"num_examples": 60.0, "loss": 3.0},
        "d": {"num_examples": 0.0},
    }
    assert weighted_mean(metrics, "auroc_macro") == pytest.approx(0.8)
    assert selection_score(metrics, "auroc_macro") == [2.0, pytest.approx(0.8)]
    undefined = selection_score({"c": metrics["c"]}, "auroc_macro")
    assert undefined == [1.0, -3.0]
    assert selection_score({"c": metrics["c"]}, "loss") == [2.0, -3.0]
    assert undefined < selection_score(metrics, "auroc_macro")
    assert selection_score({"d": metrics["d"]}, "loss") == [0.0, 0.0] < undefined
