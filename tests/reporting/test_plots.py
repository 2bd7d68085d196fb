"""The metrics show what the summary holds: points are read back from the drawings."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fed_diffmic.reporting import plots
from fed_diffmic.reporting.curves import GLOBAL, Row, metric_rows
from fed_diffmic.reporting.events import Event


def drawn(figure: Any) -> list[float]:
    """x of every single marker."""
    return [float(line.get_xdata()[0]) for line in figure.axes[0].lines if len(line.get_xdata()) == 1]


def labels(axis: Any) -> list[str]:
    """Tick labels of an axis."""
    return [tick.get_text() for tick in axis.get_ticklabels()]


def test_site_plot_has_every_value(summary: dict[str, Any]) -> None:
    found = plots.site_plot(summary, "auroc_macro")
    blocks = [
        summary,
        *(summary["baselines"][arm] for arm in ("local", "pooled")),
        summary["baselines"]["plain"]["federated"],
    ]
    expected = [b["mean"]["test"]["auroc_macro"]["value"] for b in blocks]
    expected += [b["sites"][s]["test"]["auroc_macro"]["value"] for b in blocks for s in summary["sites"]]
    assert sorted(drawn(found)) == pytest.approx(sorted(expected))
    assert labels(found.axes[0].yaxis) == ["mean over sites", *sorted(summary["sites"])]


def test_difference_plot_is_symmetric_about_zero(summary: dict[str, Any]) -> None:
    found = plots.difference_plot(summary, "local", "auroc_macro")
    assert found is not None
    block = summary["differences"]["local"]
    expected = [
        block["mean"]["auroc_macro"]["value"],
        *(block["sites"][s]["auroc_macro"]["value"] for s in sorted(block["sites"])),
    ]
    assert drawn(found) == pytest.approx(expected)
    left, right = found.axes[0].get_xlim()
    assert left == -right
    assert plots.difference_plot({**summary, "differences": {}}, "local", "auroc_macro") is None


def test_curves_have_a_line_an_arm_and_sites_share_a_name(events: list[Event]) -> None:
    rows = metric_rows(events)
    found = plots.curve_plot(rows, "guidance", "val", "auroc_macro")
    assert found is not None and len(found.axes[0].lines) == 4
    assert [t.get_text() for t in found.legends[0].texts] == [
        "federated",
        "all data pooled",
        "each site alone",
    ]
    expected = [
        r.value
        for r in rows
        if (r.arm, r.stage) == ("pooled", "guidance")
        and (r.split, r.metric, r.site) == ("val", "auroc_macro", "global")
    ]
    assert found.axes[0].lines[1].get_ydata().tolist() == expected
    assert plots.curve_plot(rows, "guidance", "val", "kappa_quadratic") is None


def test_single_sites_of_a_nested_arm_share_its_look() -> None:
    rows = [Row(f"plain/local/{site}", 1.0, "plain", 1, "global", "val", "auroc_macro", 0.5) for site in "ab"]
    found = plots.curve_plot(rows, "plain", "val", "auroc_macro")
    assert found is not None and {line.get_color() for line in found.axes[0].lines} == {plots.LOOK["plain/local"][0]}
    assert [t.get_text() for t in found.legends[0].texts] == ["plain classifier, each site alone"]


def test_rounds_are_drawn_in_order_whatever_the_order_of_events() -> None:
    rows = [Row("federated", 1.0, "plain", r, "global", "val", "auroc_macro", r / 10) for r in (3, 1, 2)]
    found = plots.curve_plot(rows, "plain", "val", "auroc_macro")
    assert found is not None and found.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]


def test_matrices_show_every_count(summary: dict[str, Any]) -> None:
    table = summary["global"]["test"]["confusion"]
    texts = [t.get_text() for t in plots.confusion_plot(table, summary["classes"]).axes[0].texts]
    assert texts == [str(v) if v else "" for row in table for v in row]
    counts = {"b": {"x": 3}, "a": {"x": 0, "y": 12}}
    found, sizes = plots.partition_plot(counts, ["x", "y"], {"a": 15, "b": 5}).axes
    assert [t.get_text() for t in found.texts] == ["12", "3"] and labels(found.yaxis) == ["a", "b"]
    small, large = sorted(float(c.get_sizes()[0]) for c in found.collections)
    assert (large - 12) / (small - 12) == pytest.approx(4)  # area, not diameter
    assert [bar.get_width() for bar in sizes.patches][-2:] == [15, 5]
    assert len(plots.confusion_plot(np.zeros((3, 3)), ["a", "b", "c"]).axes[0].texts) == 9  # no image at all


def test_the_shade_of_a_confusion_is_the_share_of_its_row() -> None:
    """What becomes of the images of a class: of two of a class one is right, of two hundred all."""
    found = plots.confusion_plot([[1, 1, 0], [0, 200, 0], [0, 0, 0]], ["a", "b", "c"]).axes[0]
    shade = np.asarray(found.images[0].get_array())
    assert shade == pytest.approx(np.array([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]))
    assert [text.get_color() == "white" for text in found.texts] == [v > 0.55 for v in shade.ravel()]
    assert (found.get_ylabel(), found.get_xlabel()) == ("truth", "decided")
    assert [text.get_position() for text in found.texts if text.get_text() == "200"] == [(1, 1)]


def test_a_matrix_is_shaded_from_its_least_to_its_largest_value_model_by_model() -> None:
    values = {"federated": {"x": 0.9, "y": 0.5}, "local": {"x": 0.7, "y": None}}
    matrix = {
        model: {site: {"auroc_macro": {"value": v}, "ranked": site == "x"} for site, v in row.items()}
        for model, row in values.items()
    }
    found = plots.matrix_plot(matrix, "auroc_macro").axes[0]
    assert np.asarray(found.images[0].get_array()) == pytest.approx(np.array([[1.0, 0.0], [0.5, 0.0]]))
    assert [text.get_text() for text in found.texts] == ["0.90", "(0.50)", "0.70", "-"]
    assert (labels(found.yaxis), labels(found.xaxis)) == (["federated", "each site alone"], ["x", "y"])


def test_intervals_are_drawn_from_low_to_high_at_their_own_value() -> None:
    """The whiskers of a difference: each site's own, in the order of the rows."""
    sites = {"a": (0.1, 0.05, 0.3), "b": (-0.2, -0.25, -0.1)}
    block = {
        "mean": {"auroc_macro": {"value": 0.0, "low": -0.1, "high": 0.2}},
        "sites": {n: {"auroc_macro": {"value": v, "low": lo, "high": hi}} for n, (v, lo, hi) in sites.items()},
    }
    found = plots.difference_plot(
        {"differences": {"local": block}, "sites": {"a": {}, "b": {}}}, "local", "auroc_macro"
    )
    assert found is not None
    spans = [tuple(line.get_xdata()) for line in found.axes[0].lines if len(line.get_xdata()) == 2]
    assert [span for span in spans if span[0] != span[1]] == [(-0.1, 0.2), (0.05, 0.3), (-0.25, -0.1)]


def test_reliability(summary: dict[str, Any]) -> None:
    bins = summary["global"]["test"]["reliability"]
    points = plots.reliability_plot(bins).axes[0].collections[0]
    assert np.asarray(points.get_offsets()) == pytest.approx(
        np.array([[b["confidence"], b["frequency"]] for b in bins])
    )
    areas = np.asarray(points.get_sizes()) - 20  # the area, beyond a least one, is the share of predictions
    assert areas / areas.sum() == pytest.approx([b["n"] / sum(b["n"] for b in bins) for b in bins])


def test_names_are_never_markup_and_bytes_never_change() -> None:
    counts = {"$\\frac{1}{2$": {"<b>&$x^2$": 4}, "Zürich": {}}
    first, second = (plots.data_uri(plots.partition_plot(counts, ["<b>&$x^2$"], {})) for _ in range(2))
    assert first == second
    assert b"<svg" in base64.b64decode(first.split(",")[1])


def test_many_sites_still_fit(make_summary: Callable[..., dict[str, Any]], summary: dict[str, Any]) -> None:
    many = {f"site-{k:03d}": summary["sites"]["rosendahl"] for k in range(200)}
    found = plots.site_plot({**summary, "sites": many, "baselines": {}}, "auroc_macro")
    assert len(labels(found.axes[0].yaxis)) == plots.MOST_ROWS + 1


def test_arms_differ_in_colour_and_in_marker() -> None:
    looks = list(plots.LOOK.values())
    assert len({color for color, _, _ in looks}) == len(looks) == len({marker for _, marker, _ in looks})


@pytest.mark.parametrize(("rounds", "ticks"), [([1], [1]), ([1, 2], [1, 2]), ([3, 4, 5], [3, 4, 5])])
def test_a_round_axis_has_whole_numbers_however_few(rounds, ticks):
    rows = [Row("federated", 1.0, "guidance", r, GLOBAL, "val", "auroc_macro", 0.6) for r in rounds]
    drawing = plots.curve_plot(rows, "guidance", "val", "auroc_macro")
    assert drawing.axes[0].get_xticks().tolist() == ticks
    drawing = plots.runs_plot({"a": [(r, 0.6) for r in rounds]}, "auroc_macro")
    assert drawing.axes[0].get_xticks().tolist() == ticks


def test_chance_is_drawn_beside_the_sites(summary):
    ax = plots.site_plot(summary, "balanced_accuracy").axes[0]
    (line,) = [line for line in ax.lines if line.get_label() == "chance"]
    assert set(line.get_xdata()) == {1 / 7}
    assert not [line for line in plots.site_plot(summary, "accuracy").axes[0].lines if line.get_label() == "chance"]
