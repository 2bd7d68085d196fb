"""The opening sentences follow the paired intervals and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from fed_diffmic.reporting.story import HELPED, UNCLEAR, UNKNOWN, WORSE, tell, verdict
from fed_diffmic.reporting.view import MINUS


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


def test_without_local_baseline_or_defined_figures(summary: dict[str, Any]) -> None:
    bare = copy.deepcopy(summary)
    del bare["baselines"], bare["differences"]
    assert tell(bare).verdict == UNKNOWN and "no local baseline" in tell(bare).headline
    undefined = copy.deepcopy(summary)
    undefined["differences"]["local"]["mean"]["auroc_macro"] = {"value": None, "low": None, "high": None, "n": 0}
    undefined["mean"]["test"]["auroc_macro"]["value"] = None
    assert "too few test images" in tell(undefined).headline


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
