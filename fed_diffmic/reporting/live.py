"""Interactive twins of a report's figures: what is pointed at says its number, a click on a legend hides a line.

The page stays one file that asks for nothing: plotly.js (extra ``interactive``) is written into it once, and its
content security policy lets exactly the two scripts run that are in it, by their digests. It hands nothing on either:
plotly.js 4 has a button that opens its maker's site and posts the chart there. No policy can forbid a window, so the
buttons are named one by one, and the maker's addresses are taken out of the library. The static picture stays: it is
shown where scripts do not run, where drawing fails, and on paper.

A drawing is what plotly.js takes, ``{"data": [...], "layout": {...}}``. Names of sites and classes are data: plotly
reads some markup in texts, so they are escaped here, and no text is used as a template.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from fed_diffmic.errors import UsageError
from fed_diffmic.reporting import plots
from fed_diffmic.reporting.curves import Row
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.view import METRIC_NAMES, arm_name, arms, mean_measured, measured, number, with_interval

Drawing = dict[str, Any]
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
_MARKERS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down"}
_MARKERS |= {"P": "cross", "X": "x", ".": "circle"}
_START = """
for (const figure of document.querySelectorAll("figure[data-live]")) {
  const place = document.createElement("div");
  place.className = "live";
  figure.prepend(place);
  const drawn = JSON.parse(figure.dataset.live);
  const ways = {
    responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]]
  };
  Plotly.newPlot(place, drawn.data, drawn.layout, ways).then(
    () => figure.classList.add("drawn"),
    () => place.remove()
  );
}
"""
_STYLE = """
figure.drawn > img { display: none; }
figure .live { width: 100%; max-width: 40rem; }
@media print { figure.drawn > img { display: block; } figure .live { display: none; } }
"""


def head() -> tuple[Html, str]:
    """What an interactive page has in its head, and what its policy must allow.

    Returns:
        markup; the source list of ``script-src``.

    Raises:
        UsageError: the package plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UsageError(
            "--interactive needs the package plotly", "Install it: pip install 'fed-diffmic[interactive]'."
        ) from error
    library = get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script")
    library = re.sub(r"https?://[a-z.-]*plot(?:ly|\.ly)[^\"'`\s]*", "", library)
    # The library before the figures; what draws them only once they are there.
    wait = f'document.addEventListener("DOMContentLoaded", () => {{{_START}}});'
    scripts = (library, wait)
    markup = "".join(f"<script>{script}</script>\n" for script in scripts)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return Html(f"<style>{_STYLE}</style>\n{markup}"), " ".join(f"'sha256-{digest}'" for digest in digests)


def attribute(drawing: Drawing | None) -> str:
    """The drawing as an attribute of its ``figure``; nothing for none."""
    if drawing is None:
        return ""
    return f' data-live="{escape(json.dumps(drawing, allow_nan=False, separators=(",", ":")))}"'


def _layout(height: int, **more: Any) -> Drawing:
    layout = {
        "height": height,
        "margin": {"l": 60, "r": 15, "t": 60, "b": 45},
        "font": {"size": 12},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "plot_bgcolor": "#ffffff",
    }
    return layout | more


def _folded(name: str) -> str:
    """A long name over several lines, so that a phone has room for what it names."""
    return "<br>".join(escape(line) for line in textwrap.wrap(name, 22))


def _axis(title: str, **more: Any) -> Drawing:
    return {"title": {"text": escape(title)}, "gridcolor": "#e6e6e6", "zeroline": False, "automargin": True, **more}


def curve_drawing(rows: Sequence[Row], stage: str, split: str, metric: str) -> Drawing | None:
    """The twin of :func:`fed_diffmic.reporting.plots.curve_plot`; every line is named where it is pointed at."""
    data = []
    seen: set[str] = set()
    for arm, points in plots.curves(rows, stage, split, metric).items():
        kind, (color, marker, style) = plots.kind_and_look(arm)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [row.round for row in points],
                "y": [row.value for row in points],
                "name": escape(arm_name(kind)),
                "legendgroup": kind,
                "showlegend": kind not in seen,
                "line": {"color": color, "dash": _DASHES[style], "width": 2 if kind == arm else 1},
                "marker": {"symbol": _MARKERS[marker], "size": 6},
                "opacity": 1 if kind == arm else 0.5,
                "hoverinfo": "text",
                "hovertext": [f"{escape(arm_name(arm))}<br>round {row.round}: {number(row.value)}" for row in points],
            }
        )
        seen.add(kind)
    if not data:
        return None
    name = METRIC_NAMES.get(metric, metric) + (" (validation)" if split == "val" else " (training)")
    return {"data": data, "layout": _layout(360, xaxis=_axis("round", tickformat="d"), yaxis=_axis(name))}


def matrix_drawing(matrix: Mapping[str, Mapping[str, Mapping[str, Any]]], metric: str) -> Drawing:
    """The twin of :func:`fed_diffmic.reporting.plots.matrix_plot`; a cell tells its interval, images and positives."""
    models = list(matrix)[: plots.MOST_ROWS]
    sites = list(matrix[models[0]])

    def said(model: str, site: str) -> str:
        cell = matrix[model][site]
        counts = ", ".join(
            f"{name} {'kept back' if count is None else count}" for name, count in cell["positives"].items()
        )
        rank = "" if cell["ranked"] else "<br>not ranked: a class has too few positives"
        at = f"{escape(arm_name(model))}<br>on {escape(site)}"
        return f"{at}: {with_interval(cell[metric])}<br>{cell['n']} images; {escape(counts)}{rank}"

    data = {
        "type": "heatmap",
        "z": [[matrix[model][site][metric]["value"] for site in sites] for model in models],
        "x": [escape(site) for site in sites],
        "y": [_folded(arm_name(model)) for model in models],
        "text": [[plots.cell_text(matrix[model][site], metric) for site in sites] for model in models],
        "texttemplate": "%{text}",
        "hoverinfo": "text",
        "hovertext": [[said(model, site) for site in sites] for model in models],
        "colorscale": [[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08519c"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    axes = {
        "xaxis": _axis("test images of", type="category"),
        "yaxis": _axis("", type="category", autorange="reversed"),
    }
    return {"data": [data], "layout": _layout(170 + 44 * len(models), **axes)}


def site_drawing(summary: Mapping[str, Any], metric: str) -> Drawing:
    """The twin of :func:`fed_diffmic.reporting.plots.site_plot`."""
    sites = sorted(summary["sites"])[: plots.MOST_ROWS]
    names = ["mean over sites", *sites]
    data = []
    for arm, block in _compared(summary):
        entries = [mean_measured(block, metric), *(measured(block, metric, site=site) for site in sites)]
        color, marker, _ = plots.LOOK[arm]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [entry["value"] for entry in entries],
                "y": [escape(name) for name in names],
                "name": escape(arm_name(arm)),
                "marker": {"color": color, "symbol": _MARKERS[marker], "size": 8},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_reach(entry, "high", 1) for entry in entries],
                    "arrayminus": [_reach(entry, "low", -1) for entry in entries],
                    "thickness": 1.5,
                    "width": 0,
                },
                "hoverinfo": "text",
                "hovertext": [
                    f"{escape(arm_name(arm))}<br>{escape(name)}: {with_interval(entry)}<br>{entry['n']} images"
                    for name, entry in zip(names, entries, strict=True)
                ],
            }
        )
    value = _axis(f"{METRIC_NAMES[metric]} on test images (95 % interval)")
    axes = {"xaxis": value, "yaxis": _axis("", type="category", autorange="reversed")}
    groups = {"scattermode": "group", "scattergap": 0.4}
    return {"data": data, "layout": _layout(160 + 20 * len(data) * len(names), **axes, **groups)}


def _compared(summary: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return ((arm, block) for arm, block in arms(summary).items() if arm in plots.COMPARED)


def _reach(entry: Mapping[str, Any], end: str, sign: int) -> float:
    """How far the interval reaches from the value; 0 where there is none."""
    if entry.get("value") is None or entry.get(end) is None:
        return 0.0
    return max(0.0, sign * (float(entry[end]) - float(entry["value"])))
