"""The figures of a report: vector graphics, colours that colour-blind readers can tell apart (Okabe and Ito 2008).

Every function returns a Matplotlib figure and leaves no setting changed; colour never carries a meaning alone (markers,
line styles or numbers repeat it). Widths suit a phone held upright as well as half a page. Names of sites and classes
are data: they are drawn as they are, never as mathematical markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fed_diffmic.reporting.curves import GLOBAL, Row
from fed_diffmic.reporting.view import FEDERATED, METRIC_NAMES, arm_name, arms, chance, mean_measured, measured, paired

WIDTH = 5.4  # inches
MOST_ROWS = 60  # sites in one figure; more are in the tables only
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "fed_diffmic",
    "text.parse_math": False,
}
# Colour, marker and line style of each arm.
LOOK = {
    FEDERATED: ("#0072B2", "o", "-"),
    "local": ("#D55E00", "s", "--"),
    "pooled": ("#009E73", "D", "-."),
    "plain/federated": ("#CC79A7", "^", ":"),
    "plain/local": ("#E69F00", "v", ":"),
    "plain/pooled": ("#56B4E9", "P", ":"),
    "guidance": ("#333333", "X", ":"),
}
_OTHER = ("#888888", ".", "-")
COMPARED = (FEDERATED, "local", "pooled", "plain/federated")


def data_uri(drawing: Figure) -> str:
    """The figure as an SVG ``data:`` address, the same bytes for the same figure."""
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def _axes(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing, drawing.add_subplot()


def _whisker(ax: Axes, entry: Mapping[str, Any], y: float, look: tuple[str, str, str], label: str | None) -> None:
    color, marker, _ = look
    if entry.get("value") is None:
        return
    if entry.get("low") is not None:
        ax.plot([entry["low"], entry["high"]], [y, y], color=color, lw=1.6, solid_capstyle="butt", alpha=0.75)
    ax.plot([entry["value"]], [y], marker, color=color, ms=6, label=label, zorder=3)


def _site_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    for row in range(0, len(names), 2):
        ax.axhspan(row - 0.5, row + 0.5, color="#f5f5f5", zorder=0, lw=0)


@mpl.rc_context(STYLE)
def site_plot(summary: Mapping[str, Any], metric: str) -> Figure:
    """Test metric of each arm at each site with its interval, the mean over sites on top."""
    models = {arm: block for arm, block in arms(summary).items() if arm in COMPARED}
    sites = sorted(summary["sites"])[:MOST_ROWS]
    drawing, ax = _axes(1.3 + (0.16 * len(models) + 0.2) * (len(sites) + 1))
    step = 0.7 / max(1, len(models))
    for position, (arm, block) in enumerate(models.items()):
        entries = [mean_measured(block, metric), *(measured(block, metric, site=site) for site in sites)]
        shift = (position - (len(models) - 1) / 2) * step
        label: str | None = arm_name(arm)
        for row, entry in enumerate(entries):
            _whisker(ax, entry, row + shift, LOOK[arm], label)
            label = label if entry.get("value") is None else None
    _site_rows(ax, ["mean over sites", *sites])
    known = chance(metric, summary["task"], len(measured(models[FEDERATED], metric).get("classes") or []))
    if known is not None:
        ax.axvline(known, color="#777777", lw=1, ls=(0, (2, 2)), label="chance")
    ax.set_xlabel(f"{METRIC_NAMES[metric]} on test images (95 % interval)")
    drawing.legend(loc="outside upper left", ncols=1 if len(models) < 3 else 2, handletextpad=0.2)
    return drawing


@mpl.rc_context(STYLE)
def difference_plot(summary: Mapping[str, Any], arm: str, metric: str) -> Figure | None:
    """Paired difference federated minus ``arm`` at each site and over sites; ``None`` where none was measured."""
    sites = sorted(summary["sites"])[:MOST_ROWS]
    entries = [paired(summary, arm, metric), *(paired(summary, arm, metric, site) for site in sites)]
    if not any(entries):
        return None
    drawing, ax = _axes(1.3 + 0.3 * len(entries))
    for row, entry in enumerate(entries):
        if entry is not None:
            _whisker(ax, entry, row, (LOOK[FEDERATED][0], "D" if row == 0 else "o", "-"), None)
        else:
            ax.text(0, row, "  undefined", va="center", color="#777777", fontsize=9)
    _site_rows(ax, ["mean over sites", *sites])
    ax.axvline(0, color="#333333", lw=1)
    ax.set_xlabel(f"difference in {METRIC_NAMES[metric]} (95 % interval)")
    left, right = ax.get_xlim()
    reach = 1.05 * max(abs(left), abs(right), 0.01)
    ax.set_xlim(-reach, reach)
    ax.set_title(
        "federating worse  \N{LEFTWARDS ARROW}     \N{RIGHTWARDS ARROW}  federating better", loc="center", fontsize=9
    )
    return drawing


def curves(rows: Sequence[Row], stage: str, split: str, metric: str) -> dict[str, list[Row]]:
    """A number of a stage's rounds as a whole, by arm, in the order of rounds."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if (row.stage, row.split, row.metric, row.site) == (stage, split, metric, GLOBAL) and row.round is not None:
            lines.setdefault(row.arm, []).append(row)
    return {arm: sorted(points, key=lambda row: row.round or 0) for arm, points in lines.items()}


def kind_and_look(arm: str) -> tuple[str, tuple[str, str, str]]:
    """What arms of single sites (``local/NAME``, ``plain/local/NAME``) have in common with each other; how it looks."""
    kind = arm
    while kind not in LOOK and "/" in kind:
        kind = kind.rpartition("/")[0]
    return (kind, LOOK[kind]) if kind in LOOK else (arm, _OTHER)


def _round_axis(ax: Axes, rounds: Sequence[int]) -> None:
    """Whole numbers, however few: a single round has no width of its own, and its ticks would be fractions."""
    first, last = min(rounds, default=0), max(rounds, default=1)
    if last - first < 3:
        ax.set_xlim(first - 0.5, last + 0.5)
        ax.set_xticks(range(first, last + 1))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("round")


@mpl.rc_context(STYLE)
def curve_plot(rows: Sequence[Row], stage: str, split: str, metric: str) -> Figure | None:
    """A number by round, a line for each arm; ``None`` if no round of the stage has it.

    Arms of single sites are thin lines in the colour of their kind.
    """
    lines = curves(rows, stage, split, metric)
    if not lines:
        return None
    drawing, ax = _axes(3.1)
    named: set[str] = set()
    for arm, points in lines.items():
        label, (color, marker, style) = kind_and_look(arm)
        single = label != arm
        ax.plot(
            [row.round or 0 for row in points],
            [row.value for row in points],
            linestyle=style,
            marker=marker,
            ms=4 if single or len(points) > 20 else 5,
            lw=1 if single else 1.8,
            alpha=0.5 if single else 1,
            color=color,
            label=None if label in named else arm_name(label),
        )
        named.add(label)
    _round_axis(ax, [row.round or 0 for points in lines.values() for row in points])
    ax.set_ylabel(METRIC_NAMES.get(metric, metric) + (" (validation)" if split == "val" else " (training)"))
    drawing.legend(loc="outside upper left", ncols=1 if len(named) < 3 else 2)
    return drawing


@mpl.rc_context(STYLE)
def runs_plot(lines: Mapping[str, Sequence[tuple[int, float]]], metric: str) -> Figure | None:
    """A validation metric by round, a line for each run; ``None`` if there is none. Looks repeat after the seventh."""
    if not lines:
        return None
    drawing, ax = _axes(3.1)
    looks = list(LOOK.values())
    for number, (label, points) in enumerate(lines.items()):
        color, marker, style = looks[number % len(looks)]
        ax.plot(*zip(*points, strict=True), linestyle=style, marker=marker, ms=4, lw=1.8, color=color, label=label)
    _round_axis(ax, [index for points in lines.values() for index, _ in points])
    ax.set_ylabel(f"{METRIC_NAMES.get(metric, metric)} (validation)")
    drawing.legend(loc="outside upper left", ncols=1 if len(lines) < 3 else 2)
    return drawing


def _annotate(ax: Axes, texts: np.ndarray, shade: np.ndarray) -> None:
    """Write a text into each cell, dark on light and light on dark."""
    small = 9 if texts.shape[1] <= 8 else 7 if texts.shape[1] <= 12 else 6
    for (i, j), text in np.ndenumerate(texts):
        ax.text(
            j, i, text, ha="center", va="center", fontsize=small, color="white" if shade[i, j] > 0.55 else "#222222"
        )


def _matrix(shade: np.ndarray, texts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> tuple[Figure, Axes]:
    long = max((len(name) for name in columns), default=0)
    drawing, ax = _axes(max(1.6, 0.36 * len(rows) + 0.9 + 0.07 * long))
    ax.imshow(shade, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    _annotate(ax, texts, shade)
    turned = len(columns) > 5 or long > 9
    ax.set_xticks(range(len(columns)), columns, rotation=45 if turned else 0, ha="right" if turned else "center")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, labelsize=9 if max(len(rows), len(columns)) <= 12 else 8)
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return drawing, ax


@mpl.rc_context(STYLE)
def partition_plot(counts: Mapping[str, Mapping[str, int]], classes: Sequence[str], sizes: Mapping[str, int]) -> Figure:
    """Class by site bubbles whose area is the number of images, with each site's size as a bar beside them."""
    sites = sorted(counts)[:MOST_ROWS]
    table = np.array([[int(counts[site].get(name, 0)) for name in classes] for site in sites], dtype=float)
    long = max((len(name) for name in classes), default=0)
    drawing = Figure(figsize=(WIDTH, max(1.9, 0.36 * len(sites) + 1.0 + 0.07 * long)), layout="constrained")
    FigureCanvasAgg(drawing)
    ax, bars = drawing.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    for (row, column), count in np.ndenumerate(table):
        if count:
            area = 12 + 380 * count / max(1.0, float(table.max()))
            ax.scatter([column], [row], s=area, color=LOOK[FEDERATED][0], alpha=0.45, lw=0)
            ax.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=7 if len(classes) > 8 else 8)
    turned = len(classes) > 5 or long > 9
    ax.set_xticks(range(len(classes)), classes, rotation=45 if turned else 0, ha="right" if turned else "center")
    ax.set_xlim(-0.6, len(classes) - 0.4)
    _site_rows(ax, sites)
    bars.barh(range(len(sites)), [sizes.get(site, 0) for site in sites], color="#bbd7ea", height=0.5)
    bars.set_xlabel("images")
    bars.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    return drawing


def cell_text(cell: Mapping[str, Any], metric: str) -> str:
    """A matrix's number as it stands in its cell; in brackets where it is not ranked."""
    value = cell[metric]["value"]
    if value is None:
        return "-"
    return f"{value:.2f}" if cell["ranked"] else f"({value:.2f})"


@mpl.rc_context(STYLE)
def matrix_plot(matrix: Mapping[str, Mapping[str, Mapping[str, Any]]], metric: str) -> Figure:
    """Models by sites as a heat map; numbers that are not ranked stand in brackets."""
    models = list(matrix)[:MOST_ROWS]
    sites = list(matrix[models[0]])
    values = np.array([[matrix[m][s][metric]["value"] for s in sites] for m in models], dtype=float)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 1.0)
    shade = np.nan_to_num((values - low) / max(high - low, 1e-9))
    texts = np.array([[cell_text(matrix[m][s], metric) for s in sites] for m in models])
    drawing, ax = _matrix(shade, texts, [arm_name(m) for m in models], sites)
    ax.set_xlabel("test images of")
    return drawing


@mpl.rc_context(STYLE)
def confusion_plot(table: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Counts of truth (rows) by decision (columns); shade is the share of the row."""
    counts = np.asarray(table, dtype=np.int64)
    shade = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawing, ax = _matrix(shade, np.where(counts > 0, counts.astype(str), ""), list(classes), list(classes))
    ax.set_xlabel("decided")
    ax.set_ylabel("truth")
    return drawing


@mpl.rc_context(STYLE)
def reliability_plot(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Observed frequency against stated probability; the area of a point is the share of predictions in its bin."""
    drawing, ax = _axes(3.6)
    ax.plot([0, 1], [0, 1], color="#777777", lw=1, ls="--", label="perfect")
    total = sum(entry["n"] for entry in bins) or 1
    confidence, frequency = ([entry[key] for entry in bins] for key in ("confidence", "frequency"))
    ax.plot(confidence, frequency, color=LOOK[FEDERATED][0], lw=1.2, alpha=0.6)
    area = [20 + 500 * entry["n"] / total for entry in bins]
    ax.scatter(confidence, frequency, s=area, color=LOOK[FEDERATED][0], alpha=0.75, lw=0, label="this model")
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("probability stated")
    ax.set_ylabel("share that was right")
    return drawing
