"""The pictures of an experiment's report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fed_diffmic.files import read_json
from fed_diffmic.reporting.plots import STYLE
from simulations.experiments.answer import NAMES
from simulations.experiments.compare import (
    MEAN,
    METRICS,
    WORST,
    Difference,
    Section,
    critical_difference,
    differences,
    mean_of,
    ranks,
)
from simulations.experiments.gather import COMPARED
from simulations.experiments.runner import CELLS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#8C6D31", "#666666")
MARKERS = "osD^vPX<>"
ABOUT_BYTES = (
    "Macro AUROC on test images (mean over sites and seeds; the line: the seeds) against what the federation sent"
)


def _drawing(height: float) -> Figure:
    drawing = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def save_drawing(drawing: Figure, path: Path) -> None:
    """Write a picture as SVG, the same bytes each time."""
    with mpl.rc_context(STYLE), path.with_suffix(".part").open("wb") as stream:
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    path.with_suffix(".part").replace(path)


def pictures(section: Section) -> Iterator[tuple[str, str, Figure]]:
    """File name, what it shows, and drawing of each picture of a section."""
    for figure in METRICS:
        found = differences(section, "local", figure)
        if found:
            yield f"gain-{figure}", f"{NAMES[figure]}: each site's gain over training alone", _gains(section, found)
        yield f"worst-{figure}", f"{NAMES[figure]}: mean over sites against the worst site", _worst(section, figure)
        ranked = ranks(section, figure)
        if len(ranked) > 1 and len(section.seeds) > 1:
            about = f"{NAMES[figure]}: mean rank over sites and seeds, with the critical difference (Nemenyi, 0.05)"
            yield f"ranks-{figure}", about, _ranks(section, ranked)
    sent = {method: count for method, count in section.bytes_sent.items() if count > 0}
    if len(set(sent.values())) > 1:  # who trains alone sends nothing
        yield "bytes-auroc_macro", ABOUT_BYTES, _against_bytes(section, sent)


@mpl.rc_context(STYLE)
def _gains(section: Section, found: dict[tuple[str, str], Difference]) -> Figure:
    """A row for each method, a marker for each site, the mean over sites as a bar with its interval."""
    methods = list(dict.fromkeys(method for method, _ in found))
    drawing = _drawing(1.2 + 0.32 * len(methods))
    ax = drawing.add_subplot()
    for row, method in enumerate(methods):
        mean = found.get((method, MEAN))
        if mean is not None:
            ax.plot([mean.low, mean.high], [row, row], color="#333333", lw=1.4)
            ax.plot([mean.mean], [row], "|", color="#333333", ms=14, mew=2)
        for position, site in enumerate(sorted(section.judged)):
            gap = found.get((method, site))
            if gap is not None:
                style: Any = {"color": COLORS[position % len(COLORS)], "marker": MARKERS[position % len(MARKERS)]}
                filled = "full" if gap.verdict != "not shown" else "none"
                label = site if row == 0 else None
                ax.plot([gap.mean], [row], ls="", ms=6, fillstyle=filled, label=label, **style)
    ax.axvline(0, color="#999999", lw=1)
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.set_xlabel(
        "difference from training alone\nfilled: the interval excludes zero; bar and line: mean over sites, 95 %"
    )
    drawing.legend(loc="outside upper left", ncols=4, fontsize=8)
    return drawing


@mpl.rc_context(STYLE)
def _worst(section: Section, figure: str) -> Figure:
    drawing = _drawing(4.0)
    ax = drawing.add_subplot()
    for position, method in enumerate(section.methods):
        mean, worst = (mean_of(section.values[method, place, figure]) for place in (MEAN, WORST))
        if math.isnan(mean) or math.isnan(worst):
            continue
        color, marker = COLORS[position % len(COLORS)], MARKERS[(position // len(COLORS)) % len(MARKERS)]
        ax.plot([mean], [worst], marker, color=color, ms=7, label=method)
    ax.set_xlabel(f"{NAMES[figure]}, mean over sites")
    ax.set_ylabel("worst site")
    if ax.lines:
        drawing.legend(loc="outside right upper", fontsize=8)
    return drawing


@mpl.rc_context(STYLE)
def _against_bytes(section: Section, sent: Mapping[str, float]) -> Figure:
    """A marker for each method that sends anything, with a line from its worst seed to its best."""
    drawing = _drawing(4.0)
    ax = drawing.add_subplot()
    for position, (method, count) in enumerate(sent.items()):
        values = section.values[method, MEAN, "auroc_macro"]
        defined = values[~np.isnan(values)]
        if not len(defined):
            continue
        color, marker = COLORS[position % len(COLORS)], MARKERS[(position // len(COLORS)) % len(MARKERS)]
        x = count / 1e6
        ax.plot([x, x], [defined.min(), defined.max()], color=color, lw=1.4)
        ax.plot([x], [mean_of(values)], marker, color=color, ms=7, label=method)
    ax.set_xscale("log")
    ax.set_xlabel("MB of tensors, both ways")
    ax.set_ylabel("macro AUROC on test images, mean over sites")
    if ax.lines:
        drawing.legend(loc="outside right upper", fontsize=8)
    return drawing


@mpl.rc_context(STYLE)
def _ranks(section: Section, ranked: dict[str, float]) -> Figure:
    names = sorted(ranked, key=lambda name: ranked[name])
    drawing = _drawing(1.1 + 0.25 * len(names))
    ax = drawing.add_subplot()
    width = critical_difference(len(names), len(section.seeds) * len(section.judged))
    ax.barh(range(len(names)), [width] * len(names), left=[ranked[n] for n in names], height=0.25, color="#bbd7ea")
    ax.plot([ranked[n] for n in names], range(len(names)), "o", color=COLORS[0])
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("mean rank (1 is best)\nbar: critical difference, were sites and seeds independent")
    return drawing


def convergence(out: Path, index: dict[str, object], section: Section) -> Iterator[tuple[str, str, Figure]]:
    """Validation figure by round and by byte, mean over seeds, of the last stage of each method's federation."""
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    cells = index["cells"]
    assert isinstance(cells, list)
    for cell in cells:
        place = cell["place"]
        rest = {axis: v for axis, v in place.items() if axis not in COMPARED}
        path = out / CELLS / cell["name"] / "summary.json"
        if rest == dict(section.place) and place["seed"] in section.seeds and path.exists():
            summary = read_json(path)
            history = summary["stages"][summary["final_stage"]]["history"]
            points = [(row["bytes_sent"], row["mean"].get("auroc_macro", math.nan)) for row in history]
            curves.setdefault(place.get("method", "federated"), []).append(points)
    for name, label in (("round", "round"), ("byte", "MB of tensors, both ways")):
        with mpl.rc_context(STYLE):
            drawing = _drawing(4.0)
            ax = drawing.add_subplot()
            for position, (method, runs) in enumerate(curves.items()):
                length = min(map(len, runs))
                values = np.array([[v for _, v in run[:length]] for run in runs])
                if not length or np.isnan(values).all():
                    continue
                sent = np.array([[b for b, _ in run[:length]] for run in runs]).cumsum(axis=1).mean(axis=0) / 1e6
                x = np.arange(1, length + 1) if name == "round" else sent
                style = ("-", "--", ":")[(position // len(COLORS)) % 3]
                ax.plot(x, values.mean(axis=0), style, color=COLORS[position % len(COLORS)], lw=1.5, label=method)
            if not ax.lines:
                return
            ax.set_xlabel(label)
            ax.set_ylabel("macro AUROC on validation images")
            drawing.legend(loc="outside right upper", fontsize=8)
        yield f"convergence-{name}", f"Validation macro AUROC by {name}, mean over seeds", drawing
