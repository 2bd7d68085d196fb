"""The table that a run ends with, and how metrics are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fed_diffmic.reporting.table import print_summary
from fed_diffmic.reporting.view import (
    DASH,
    MINUS,
    arm_name,
    arms,
    duration,
    mean_measured,
    measured,
    number,
    size,
    with_interval,
)


def printed(summary: dict[str, Any], path: Path | str = "runs/x/report.html", width: int = 140) -> str:
    out = io.StringIO()
    print_summary(summary, path, Console(file=out, width=width))
    return out.getvalue()


def rows_of(text: str) -> dict[str, list[str]]:
    """Cells by the name in the first column."""
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines() if "│" in line]
    return {name: rest for name, *rest in cells}


def test_table_holds_global_mean_sites_and_baselines(summary: dict[str, Any]) -> None:
    """Cell by cell: whose figure stands in which column."""
    text = printed(summary)
    rows = rows_of(text)
    baselines = summary["baselines"]
    others = [baselines[arm] for arm in ("local", "pooled")] + [baselines["plain"]["federated"], baselines["guidance"]]

    def row(count: str, get: Any) -> list[str]:
        own = get(summary, "auroc_macro")
        cells = [count, number(get(summary, "balanced_accuracy")["value"]), with_interval(own)]
        return [*cells, *(number(get(block, "auroc_macro")["value"]) for block in others)]

    total = sum(block["n_test"] for block in summary["sites"].values())
    assert rows["all sites"] == row(str(total), lambda block, m: block["global"]["test"][m])
    assert rows["mean over sites"] == row(DASH, lambda block, m: block["mean"]["test"][m])
    for site, block in summary["sites"].items():
        assert rows[site] == row(str(block["n_test"]), lambda found, m, s=site: found["sites"][s]["test"][m])
    assert list(rows) == ["all sites", "mean over sites", *sorted(summary["sites"])]
    assert "Not a medical device" in text


def test_path_is_never_broken_and_names_are_not_markup(summary: dict[str, Any]) -> None:
    path = "/a/" + "very-long-folder/" * 12 + "report.html"
    sites = {"[red]st. mary[/red]": summary["sites"]["rosendahl"]}
    out = printed({**summary, "sites": sites, "baselines": {}}, path)
    assert f"Report: {path}\n" in out and "[red]st. mary[/red]" in out


def test_undefined_metrics_are_a_dash(summary: dict[str, Any]) -> None:
    out = printed({"task": "multiclass", "classes": ["a"], "sites": {"a": {}, "b": {}}})
    assert "nan" not in out.lower() and DASH in out


def test_arms_are_flattened(summary: dict[str, Any]) -> None:
    assert list(arms(summary)) == ["federated", "local", "pooled", "plain/federated", "guidance"]
    assert arm_name("plain/federated") == "plain classifier, federated" and arm_name("mine") == "mine"
    assert measured({}, "ece") == {"value": None, "low": None, "high": None, "n": 0, "classes": []}


def test_mean_without_measurement_has_no_interval(summary: dict[str, Any]) -> None:
    block = {"sites": summary["sites"]}
    found = mean_measured(block, "auroc_macro")
    assert found["value"] == pytest.approx(summary["mean"]["test"]["auroc_macro"]["value"]) and found["low"] is None
    assert found["sites"] == sorted(summary["sites"])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (number(0.81249), "0.812"),
        (number(-0.0349, sign=True), f"{MINUS}0.035"),
        (number(-0.0001, sign=True), "0.000"),
        (number(None), DASH),
        (with_interval({"value": 0.5, "low": 0.25, "high": 0.75}), "0.500 (0.250 to 0.750)"),
        (with_interval({"value": 0.5, "low": None, "high": None}), "0.500"),
        (with_interval({"value": None, "low": None}), DASH),
        (duration(3.14), "3.1 s"),
        (duration(59.7), "60 s"),
        (duration(8), "8 s"),
        (duration(250), "4 min 10 s"),
        (duration(7500), "2 h 05 min"),
        (duration(None), DASH),
        (size(999), "999 B"),
        (size(96_500_000), "96.5 MB"),
        (size(2.5e15), "2500.0 TB"),
        (size(None), DASH),
    ],
)
def test_words(call: str, text: str) -> None:
    assert call == text


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_no_figure_is_cut_however_narrow_the_terminal(summary: dict[str, Any], width: int) -> None:
    out = printed(summary, width=width)
    assert "…" not in out
    assert max(map(len, out.split("Report:")[0].splitlines())) <= width
    for site in summary["sites"]:
        rows = [line for line in out.splitlines() if site in line]
        assert any(with_interval(summary["sites"][site]["test"]["auroc_macro"]) in row for row in rows)
        for arm in ("local", "pooled", "guidance"):
            value = number(summary["baselines"][arm]["sites"][site]["test"]["auroc_macro"]["value"])
            assert any(value in row for row in rows)
