"""The front page for a clinician: verdicts by one rule, operating points, words for classes, what was not tested."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fed_diffmic.reporting.clinic import ABOVE, DOUBTFUL, UNKNOWN, USELESS, front_page, usefulness
from fed_diffmic.reporting.untested import positives, untested
from fed_diffmic.training.matrix import cell_from
from fed_diffmic.training.metrics import compute_metrics
from fed_diffmic.training.operating import class_points
from tests.reporting.conftest import CLASSES, COUNTS, predict


def measured(decided: np.ndarray, labels: np.ndarray, task: str, classes: list[str]) -> dict[str, Any]:
    """A summary of predictions that are as sure as they can be."""
    p = decided.astype(float) if task == "multilabel" else np.eye(len(classes))[decided]
    found = compute_metrics(
        p, decided, labels, np.arange(len(labels)), task=task, classes=classes, bootstrap=100, seed=0
    )
    return {"task": task, "classes": classes, "global": {"test": found}, "sites": {"north": {}}}


def test_a_model_that_calls_everything_one_class_is_called_useless() -> None:
    labels = np.repeat([0, 1, 2], [30, 60, 10])
    summary = measured(np.ones(100, int), labels, "multiclass", ["a", "b", "c"])
    summary["class_names"] = {"a": "ash", "b": "birch", "c": "cedar"}
    level, said = usefulness(summary)
    assert level == USELESS and "useless" in said and "every test image birch" in said
    assert 'class="notice"' in front_page(summary)


def test_a_model_that_does_not_beat_chance_is_said_to_and_one_that_does_is_not_called_good() -> None:
    labels, rng = np.repeat([0, 1, 2], 40), np.random.default_rng(1)
    assert usefulness(measured(rng.integers(0, 3, 120), labels, "multiclass", ["a", "b", "c"]))[0] == DOUBTFUL
    level, said = usefulness(measured(labels, labels, "multiclass", ["a", "b", "c"]))
    assert level == ABOVE and "chance 0.333" in said and "good" not in said and "fit for any use" in said


def test_of_several_labels_the_same_answer_for_every_image_is_found() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((80, 3)) < 0.4).astype(int)
    stuck = np.tile([True, False, False], (80, 1))
    assert usefulness(measured(stuck, labels, "multilabel", ["a", "b", "c"]))[0] == USELESS
    one = labels.astype(bool)
    one[:, 2] = False
    level, said = usefulness(measured(one, labels, "multilabel", ["a", "b", "c"]))
    assert level == DOUBTFUL and "says nothing of c" in said


def deployment(values: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """A coordinator's summary: balanced accuracy and the lower end of its interval at each site of two classes."""
    cells = {}
    for site, (value, low) in values.items():
        flat = {"n": 40, "groups": 40, "complete": 1, "positives/0": 20, "positives/1": 20, "balanced_accuracy": value}
        flat |= {"balanced_accuracy/low": low, "balanced_accuracy/high": 1.0}
        cells[site] = cell_from({f"test/{name}": float(n) for name, n in flat.items()}, ["a", "b"])
    cells["silent"] = cell_from({}, ["a", "b"])
    return {
        "task": "multiclass",
        "classes": ["a", "b"],
        "sites": {s: {} for s in cells},
        "matrix": {"diffusion": cells},
    }


@pytest.mark.parametrize(
    ("values", "level", "said"),
    [
        ({"east": (0.5, 0.4), "west": (0.5, 0.5)}, USELESS, "east, west"),
        ({"east": (0.9, 0.8), "west": (0.55, 0.45)}, DOUBTFUL, "at west."),
        ({"east": (0.9, 0.8)}, ABOVE, "east"),
        ({}, UNKNOWN, "no site told"),
    ],
)
def test_a_coordinators_run_is_judged_by_what_sites_let_out(
    values: dict[str, tuple[float, float]], level: str, said: str
) -> None:
    summary = deployment(values)
    assert usefulness(summary)[0] == level and said in usefulness(summary)[1]
    if values:
        assert "test images of silent: nothing was said of them" in untested(summary)


def test_a_coordinators_page_has_each_class_over_the_sites_that_told_it() -> None:
    """By hand: a cut above cell 10 finds 34 of 40 at 2 of 40 false alarms; to find 36 all must be called it."""
    summary = deployment({"east": (0.9, 0.8), "west": (0.9, 0.8)})
    summary["class_names"] = {"a": "adenoma"}
    row = summary["matrix"]["diffusion"]
    row["east"]["points"] = {"a": {"0": [[10, 18], [50, 2]], "1": [[10, 6], [50, 14]]}}
    row["west"]["points"] = {"a": {"0": [[10, 20]], "1": [[30, 4], [50, 16]]}}
    page = front_page(summary)
    table = page[page.index("sites that told it") :]
    line = table[table.index("east, west") :].split("</tr>")[0]
    assert "0.850" in line and "0.000" in line
    assert "adenoma" in page and "No interval" in page
    assert "No interval" not in front_page(deployment({"east": (0.9, 0.8)}))


@pytest.mark.parametrize(("balanced", "level"), [(0.5, USELESS), (0.4, DOUBTFUL), (0.9, UNKNOWN)])
def test_a_masked_runs_page_has_figures_over_all_sites_together(balanced: float, level: str) -> None:
    point = {"sensitivity_at_specificity": 0.75, "specificity_at_sensitivity": 0.625}
    each = {"a": {"positives": 50, "auroc": 0.875, **point}, "b": {"positives": 12, "auroc": None, **point}}
    said = {"accuracy": 0.7, "balanced_accuracy": balanced, "auroc_macro": 0.875, "ece": 0.0625}
    together = {"sites": ["east", "west"], "n": 62, "per_class": each, **said}
    summary = {**deployment({}), "matrix": {}, "together": together}
    summary["sites"] = {"east": {}, "west": {}, "silent": {}}
    assert usefulness(summary)[0] == level
    page = front_page(summary)
    for text in ("62 test images of east, west together", "0.875", "0.750", "few: read with care", "No intervals"):
        assert text in page, text
    assert "test images of silent: nothing was said of them" in untested(summary)
    assert positives(summary) == {"a": 50, "b": 12}


def test_the_page_has_chance_points_and_words(make_summary: Callable[..., dict[str, Any]]) -> None:
    summary = copy.deepcopy(make_summary(signal={"federated": 2.2}))
    parts = [predict(site, "federated", "test", "multiclass", 2.2) for site in COUNTS]
    points = class_points(parts[0], CLASSES, bootstrap=0, seed=0)
    page = front_page({**summary, "operating_points": points})
    assert "melanoma<small>mel</small>" in page and "chance<small>a guess without looking</small>" in page
    row = page[page.index("melanoma<small>") :].split("</tr>")[0]
    assert f"{points['mel']['sensitivity_at_specificity']['value']:.3f}" in row
    assert f"{points['mel']['specificity_at_sensitivity']['value']:.3f}" in row
    guess = page[page.index("chance<small>") :].split("</tr>")[0]
    assert guess.count("0.100") == 2 and "0.500" in guess
    assert "Operating points: not known" in front_page(summary)  # an earlier version made the run


def test_what_it_was_never_tested_on_follows_the_runs_files(make_summary: Callable[..., dict[str, Any]]) -> None:
    summary = copy.deepcopy(make_summary(signal={"federated": 2.2}))
    summary["dataset"] = "phantoms"
    block = summary["global"]["test"]["per_class"]
    block["df"]["positives"], block["vasc"]["positives"] = 0, 3
    said = untested(summary)
    assert said[0].startswith("any patient") and any("rosendahl" in point for point in said)
    assert "classes that no test image showed: dermatofibroma" in said
    assert "classes that fewer than 10 test images showed: vascular lesion" in said
    assert any("nobody asked" in point for point in said)
    summary["subgroups"] = {"rosendahl": {"sex": {}}}
    assert "groups of patients other than by sex" in untested(summary)
