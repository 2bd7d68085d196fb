"""The report of an experiment: Markdown, LaTeX and pictures, all computed from the cells' own files.

``fed-diffmic experiment report DIR`` writes ``report.md``, ``report.tex``, ``plots/*.svg`` and the tidy table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fed_diffmic.errors import UsageError
from fed_diffmic.files import atomic_write, read_json
from fed_diffmic.reporting.plots import STYLE
from simulations.experiments.compare import (
    COMPARED,
    FIGURES,
    LEAST_POSITIVES,
    MEAN,
    WORST,
    Difference,
    Section,
    critical_difference,
    differences,
    mean_of,
    ranks,
    sections,
    verdicts,
)
from simulations.experiments.runner import CELLS, outcome, read_index
from simulations.experiments.table import write_table

NAMES = {"balanced_accuracy": "balanced accuracy", "auroc_macro": "macro AUROC"}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#8C6D31", "#666666")
MARKERS = "osD^vPX<>"


def write_experiment_report(out: Path) -> list[Path]:
    """Write everything; the paths of what was written.

    Raises:
        UsageError: the folder holds no experiment, or none of its cells has figures.
    """
    index = read_index(out)
    found = sections(out)
    if not any(section.seeds for section in found):
        raise UsageError(f"{out}: no cell has figures yet", "Run it first: `fed-diffmic experiment run`.")
    _, written = write_table(out)
    plots = out / "plots"
    plots.mkdir(exist_ok=True)
    lines = list(_head(out, index))
    tex: list[str] = []
    for number, section in enumerate((section for section in found if section.seeds), start=1):
        lines += _section_lines(section)
        tex += _latex(section)
        drawn = [*_pictures(section), *_convergence(out, index, section)]
        for name, about, figure in drawn:
            path = plots / f"{number}-{name}.svg"
            _save(figure, path)
            written.append(path)
            lines += [f"![{about}](plots/{path.name})", "", f"*{about}*", ""]
    for path, text in ((out / "report.md", lines), (out / "report.tex", tex)):
        atomic_write(path, ("\n".join(text).rstrip() + "\n").encode())
        written.append(path)
    return written


def _head(out: Path, index: dict[str, object]) -> Iterator[str]:
    cells = index["cells"]
    assert isinstance(cells, list)
    found = outcome(out, [cell["name"] for cell in cells])
    yield f"# {index['experiment']}"
    yield ""
    yield f"{index['about']}"
    yield ""
    yield (
        f"{len(found.done)} of {len(cells)} cells have figures. Every number below is computed from them by "
        "`fed-diffmic experiment report`. **For research, not a medical device.**"
    )
    yield ""
    if found.failed:
        yield f"Without figures: {', '.join(f'{name} ({cause})' for name, cause in sorted(found.failed.items()))}."
        yield ""
    yield (
        f"At each site a class counts if its test images over the seeds hold at least {LEAST_POSITIVES} positives. "
        "*Above* and *below* mean that the 95 % interval of the paired difference over seeds excludes zero (corrected "
        "resampled t-test of Nadeau and Bengio 2003, because the seeds share images); anything else is *not shown*. "
        "A star: also with p below 0.05 after Holm's correction over all comparisons of the table."
    )
    yield ""


def number(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return "-"
    spread = f" ({defined.std(ddof=1):.3f})" if len(defined) > 1 else ""
    return f"{defined.mean():.3f}{spread}"


def gap_text(gap: Difference | None) -> str:
    """``+0.031 (+0.002 to +0.060) above*``."""
    if gap is None:
        return "-"
    star = "*" if gap.adjusted < 0.05 and gap.verdict != "not shown" else ""
    return f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}) {gap.verdict}{star}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _section_lines(section: Section) -> list[str]:
    title = ", ".join(f"{axis} {value}" for axis, value in section.place.items()) or "All methods"
    lines = [f"## {title}", "", f"{len(section.seeds)} seed(s): {', '.join(section.seeds)}."]
    if section.left_out:
        lines.append(f"Left out, because some method lacks them: {', '.join(section.left_out)}.")
    counted = "; ".join(
        f"{site}: {', '.join(section.classes[c] for c in judged) or 'none'}" for site, judged in section.judged.items()
    )
    lines += ["", f"Classes that count: {counted}.", ""]
    for figure in FIGURES:
        lines += [f"### {NAMES[figure]}", ""]
        rows = [
            [method, *(number(section.values[method, place, figure]) for place in section.places)]
            for method in section.methods
        ]
        lines += _table(["mean (standard deviation) over seeds", *section.places], rows)
        for reference in COMPARED:
            found = differences(section, reference, figure)
            if found:
                rows = [
                    [method, *(gap_text(found.get((method, place))) for place in section.places)]
                    for method in section.methods
                    if method != reference
                ]
                lines += _table([f"minus {reference}", *section.places], rows)
        lines += _verdict_lines(section, figure)
    costs = [[method, f"{sent / 1e6:,.2f}"] for method, sent in section.bytes_sent.items()]
    return [*lines, *_table(["method", "MB of tensors, both ways"], costs)]


def _verdict_lines(section: Section, figure: str) -> list[str]:
    rows = []
    for method, entry in verdicts(section, figure).items():
        above = entry.get("above_local_at")
        rows.append(
            [
                method,
                "-" if above is None else f"{len(above)} of {len(section.judged)}",
                *(
                    f"{entry[k]:.3f}" if not math.isnan(entry.get(k, math.nan)) else "-"
                    for k in ("mean_over_pooled", "worst_over_pooled")
                ),
            ]
        )
    return _table(["method", "sites above local", "mean / pooled's mean", "worst site / pooled's worst"], rows)


def _latex(section: Section) -> list[str]:
    def plain(text: str) -> str:
        for mark in "&%_#$":
            text = text.replace(mark, f"\\{mark}")
        return text

    lines = []
    for figure in FIGURES:
        lines += [f"% {NAMES[figure]}: {', '.join(f'{a} {v}' for a, v in section.place.items()) or 'all methods'}"]
        lines += [f"\\begin{{tabular}}{{l{'r' * len(section.places)}}}", "\\hline"]
        lines += [" & ".join(["method", *map(plain, section.places)]) + " \\\\", "\\hline"]
        for method in section.methods:
            row = [plain(method), *(number(section.values[method, p, figure]) for p in section.places)]
            lines.append(" & ".join(row) + " \\\\")
        lines += ["\\hline", "\\end{tabular}", ""]
    return lines


def _drawing(height: float) -> Figure:
    drawing = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def _save(drawing: Figure, path: Path) -> None:
    with mpl.rc_context(STYLE), path.with_suffix(".part").open("wb") as stream:
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    path.with_suffix(".part").replace(path)


def _pictures(section: Section) -> Iterator[tuple[str, str, Figure]]:
    for figure in FIGURES:
        found = differences(section, "local", figure)
        if found:
            yield f"gain-{figure}", f"{NAMES[figure]}: each site's gain over training alone", _gains(section, found)
        yield f"worst-{figure}", f"{NAMES[figure]}: mean over sites against the worst site", _worst(section, figure)
        ranked = ranks(section, figure)
        if len(ranked) > 1 and len(section.seeds) > 1:
            about = f"{NAMES[figure]}: mean rank over sites and seeds, with the critical difference (Nemenyi, 0.05)"
            yield f"ranks-{figure}", about, _ranks(section, ranked)


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


def _convergence(out: Path, index: dict[str, object], section: Section) -> Iterator[tuple[str, str, Figure]]:
    """Validation figure by round and by byte, mean over seeds, of the last stage of each method's federation."""
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    cells = index["cells"]
    assert isinstance(cells, list)
    for cell in cells:
        place = cell["place"]
        rest = {axis: v for axis, v in place.items() if axis not in ("seed", "method")}
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
