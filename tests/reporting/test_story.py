"""The opening sentences follow the paired intervals and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from fed_diffmic.reporting.story import HELPED, UNCLEAR, UNKNOWN, WORSE, by_chance, single_class, tell, verdict
from fed_diffmic.reporting.view import MINUS, chance


@pytest.mark.parametrize(
    ("low", "high", "metric", "expected"),
    [
        (0.01, 0.05, "auroc_macro", HELPED),
        (-0.05, -0.01, "auroc_macro", WORSE),
        (-0.01, 0.05, "auroc_macro", UNCLEAR),
        (0.0, 0.05, "auroc_macro", UNCLEAR),
        (-0.05, -0.01, "brier", HELPED),
        (0.01, 0.05, "ece", WORSE),
        (-0.01, 0.05, "ece", UNCLEAR),
        (-0.05, 0.01, "loss", UNCLEAR),
        (-0.05, 0.0, "brier", UNCLEAR),
        (0.0, 0.05, "brier", UNCLEAR),
        (-0.05, 0.0, "auroc_macro", UNCLEAR),
        (None, None, "auroc_macro", UNKNOWN),
    ],
)
def test_verdict(low: float | None, high: float | None, metric: str, expected: str) -> None:
    assert verdict({"value": 0.02, "low": low, "high": high}, metric) == expected


def test_verdict_of_nothing_is_unknown() -> None:
    assert verdict(None, "auroc_macro") == UNKNOWN


def test_a_run_that_helped(summary: dict[str, Any]) -> None:
    story = tell(summary)
    mean = summary["differences"]["local"]["mean"]["auroc_macro"]
    assert mean["low"] > 0 and story.verdict == HELPED
    amount = f"{mean['value']:+.3f} (95 % interval {mean['low']:+.3f} to {mean['high']:+.3f})"
    assert (
        story.headline == f"Federating helped: macro AUROC {amount}, mean over sites, against each site training alone."
    )
    named = [site for site in summary["sites"] if any(site in point for point in story.points)]
    assert named == list(summary["sites"])
    assert any("plain classifier" in point for point in story.points)
    assert any("diffusion stage" in point for point in story.points)


def test_a_run_that_harmed_says_so(make_summary: Callable[..., dict[str, Any]]) -> None:
    story = tell(make_summary(signal={"federated": 0.8, "local": 2.4}))
    assert story.verdict == WORSE and story.headline.startswith(f"Federating made it worse: macro AUROC {MINUS}0.")
    assert story.points[0].startswith("Worse than alone, beyond chance")


def test_no_clear_difference_is_not_called_one(make_summary: Callable[..., dict[str, Any]]) -> None:
    story = tell(make_summary(signal={"federated": 1.5, "local": 1.5}))
    assert story.verdict == UNCLEAR and story.headline.startswith("No clear difference")


def test_without_paired_interval_nothing_is_claimed(summary: dict[str, Any]) -> None:
    bare = copy.deepcopy(summary)
    del bare["differences"]
    story = tell(bare)
    gap = (
        summary["mean"]["test"]["auroc_macro"]["value"]
        - summary["baselines"]["local"]["mean"]["test"]["auroc_macro"]["value"]
    )
    assert story.verdict == UNKNOWN and f"{gap:+.3f} (no interval)" in story.headline
    assert story.points[0].startswith("Cannot be said")


def test_without_local_baseline_or_defined_metrics(summary: dict[str, Any]) -> None:
    bare = copy.deepcopy(summary)
    del bare["baselines"], bare["differences"]
    assert tell(bare).verdict == UNKNOWN and "no local baseline" in tell(bare).headline
    undefined = copy.deepcopy(summary)
    undefined["differences"]["local"]["mean"]["auroc_macro"] = {"value": None, "low": None, "high": None, "n": 0}
    undefined["mean"]["test"]["auroc_macro"]["value"] = None
    assert "too few test images" in tell(undefined).headline


def one_class(summary: dict[str, Any], name: str = "nv") -> dict[str, Any]:
    """The summary of a run whose federated model calls every test image the same, measured by our own functions."""
    changed = copy.deepcopy(summary)
    test = changed["global"]["test"]
    column = summary["classes"].index(name)
    truth = [sum(row) for row in test["confusion"]]
    test["confusion"] = [[n if c == column else 0 for c in range(len(truth))] for n in truth]
    test["balanced_accuracy"] |= {"value": 1 / 7, "low": 1 / 7, "high": 1 / 7}
    return changed


def test_a_model_that_calls_every_image_the_same_is_said_first(summary: dict[str, Any]) -> None:
    assert single_class(summary) is None and by_chance(summary) == ""
    told, before = tell(one_class(summary)), tell(summary)
    assert told.headline == (
        "The federated model calls every test image nv: its decisions are no better than chance (balanced accuracy "
        "0.143, chance 0.143)."
    )
    assert told.verdict == WORSE and told.points == (before.headline, *before.points)


def test_a_model_that_is_not_shown_to_beat_chance_is_said(summary: dict[str, Any]) -> None:
    doubtful = copy.deepcopy(summary)
    doubtful["global"]["test"]["balanced_accuracy"] |= {"value": 0.19, "low": 0.13, "high": 0.25}
    point = tell(doubtful).points[0]
    assert point == "Not shown to be better than chance: balanced accuracy 0.190 (0.130 to 0.250), chance 0.143."
    single = copy.deepcopy(summary)  # test images of one class alone: every decision is that class, and right
    single["global"]["test"]["confusion"] = [[0] * 7 for _ in range(6)] + [[0] * 6 + [9]]
    assert single_class(single) is None


@pytest.mark.parametrize(
    ("metric", "task", "classes", "value"),
    [
        ("auroc_macro", "multilabel", 3, 0.5),
        ("balanced_accuracy", "multiclass", 4, 0.25),
        ("balanced_accuracy", "multilabel", 4, 0.5),
        ("kappa_quadratic", "ordinal", 5, 0.0),
        ("accuracy", "multiclass", 4, None),  # it depends on how common the classes are
        ("auprc_macro", "multilabel", 4, None),
        ("balanced_accuracy", "multiclass", 0, None),
    ],
)
def test_chance(metric: str, task: str, classes: int, value: float | None) -> None:
    assert chance(metric, task, classes) == value


def test_each_site_stands_where_its_own_interval_puts_it(summary: dict[str, Any]) -> None:
    """Four sites, one of each kind; the global figure and the other baselines say otherwise and are not asked."""
    given = copy.deepcopy(summary)
    said = {
        "rosendahl": (0.1, 0.05, 0.2),
        "vidir_modern": (-0.1, -0.2, -0.05),
        "vidir_molemax": (0.02, -0.1, 0.1),
        "vienna_dias": (0.3, None, None),
    }
    for site, (value, low, high) in said.items():
        given["differences"]["local"]["sites"][site]["auroc_macro"] = {"value": value, "low": low, "high": high}
    points = list(tell(given).points)
    assert points[:4] == [
        "Better than alone, beyond chance: rosendahl (+0.100).",
        f"Worse than alone, beyond chance: vidir_modern ({MINUS}0.100).",
        "No clear difference: vidir_molemax (+0.020).",
        "Cannot be said (figure undefined, or no interval): vienna_dias (+0.300).",
    ]


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 0.3, "better"), (-0.3, -0.1, "worse"), (-0.1, 0.1, "no clear")]
)
def test_each_baseline_is_named_with_its_own_difference(
    summary: dict[str, Any], low: float, high: float, word: str
) -> None:
    given = copy.deepcopy(summary)
    value = (low + high) / 2
    given["differences"]["plain/federated"]["mean"]["auroc_macro"] = {"value": value, "low": low, "high": high}
    point = next(point for point in tell(given).points if "plain classifier" in point)
    assert f": {word}" in point and f"{low:+.3f}".replace("-", MINUS) in point
    assert next(point for point in tell(given).points if "all images in one place" in point) == next(
        point for point in tell(summary).points if "all images in one place" in point
    )


def advised(summary: dict[str, Any]) -> dict[str, Any]:
    sites = sorted(summary["sites"])
    step = {"candidate": "local", "against": "federated", "value": -0.02, "low": -0.05, "high": 0.01}
    taken = {"candidate": "local", "against": "federated", "value": 0.04, "low": 0.01, "high": 0.07}
    gap = {"value": 0.1, "low": 0.05, "high": 0.15}
    summary = copy.deepcopy(summary)
    summary["advice"] = {
        site: {
            "take": {
                "model": "local" if site == sites[0] else "federated",
                "metric": "auroc_macro",
                "steps": [taken if site == sites[0] else step],
            },
            "elsewhere": {"local": gap if site != sites[-1] else {"value": 0.0, "low": -0.1, "high": 0.1}},
        }
        for site in sites
    }
    metrics = {"auroc_macro": {"value": 0.9, "low": 0.85, "high": 0.95}}
    summary["external"] = {
        "far": {
            "n": 400,
            "groups": 300,
            "present": list(summary["classes"]),
            "absent": [],
            "models": {"federated": metrics, f"local/{sites[0]}": metrics},
            "differences": {f"local/{sites[0]}": {"auroc_macro": gap}},
        }
    }
    summary["partition"] = {"folds": 5, "fold": 1}
    return summary


def test_the_first_page_says_which_model_whom_it_helps_elsewhere_and_how_sure(summary: dict[str, Any]) -> None:
    told = advised(summary)
    first, *rest, last = sorted(told["sites"])
    points = tell(told).points
    assert points[-4] == (
        "On the other sites' patients, the federated model against the one that the site trained alone: better: "
        f"{', '.join(f'{site} (+0.100)' for site in [first, *rest])}; no clear difference: {last} (0.000)."
    )
    assert points[-3] == (
        "On 400 images from elsewhere (far), the federated model: macro AUROC 0.900 (0.850 to 0.950); against the "
        f"models that sites trained alone: better: {first} (+0.100)."
    )
    assert points[-2].startswith(
        f"Which model to take: {first} (better on its own patients by 0.040): its own, trained alone; "
        f"{', '.join([*rest, last])}: the federated one."
    )
    assert points[-1].startswith("How sure: own test images ") and points[-1].endswith("This is fold 2 of 5.")


def test_without_advice_the_first_page_is_as_it_was(summary: dict[str, Any]) -> None:
    told = advised(summary)
    for name in ("advice", "external"):
        del told[name]
    assert tell(told).points == tell(summary).points
