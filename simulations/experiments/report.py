"""The report of an experiment: Markdown, LaTeX and pictures, all computed from the cells' own files.

``fed-diffmic experiment report DIR`` writes ``report.md``, ``report.tex``, ``plots/*.svg`` and the tidy table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fed_diffmic.errors import UsageError
from fed_diffmic.files import atomic_write
from simulations.experiments.answer import NAMES, answer, gap_text, table
from simulations.experiments.compare import (
    COMPARED,
    LEAST_POSITIVES,
    METRICS,
    Section,
    differences,
    verdicts,
)
from simulations.experiments.gather import elsewhere, incomplete, sections
from simulations.experiments.pictures import convergence, pictures, save_drawing
from simulations.experiments.reach import SHARE
from simulations.experiments.runner import outcome, read_index
from simulations.experiments.table import write_table


def write_experiment_report(out: Path) -> list[Path]:
    """Write everything; the paths of what was written.

    Raises:
        UsageError: the folder holds no experiment, or no seed of it is whole.
    """
    index = read_index(out)
    if said := incomplete(out):
        raise UsageError(f"{out}: {said}", "`fed-diffmic experiment run` does what is missing, and nothing twice.")
    found = sections(out)
    _, written = write_table(out)
    plots = out / "plots"
    plots.mkdir(exist_ok=True)
    lines = [*_head(out, index), *answer_lines(out), *_rules(any(section.folds for section in found))]
    tex: list[str] = []
    for number, section in enumerate((section for section in found if section.seeds), start=1):
        lines += _section_lines(section)
        tex += _latex(section)
        drawn = [*pictures(section), *convergence(out, index, section)]
        for name, about, figure in drawn:
            path = plots / f"{number}-{name}.svg"
            save_drawing(figure, path)
            written.append(path)
            lines += [f"![{about}](plots/{path.name})", "", f"*{about}*", ""]
    for path, text in ((out / "report.md", lines), (out / "report.tex", tex)):
        atomic_write(path, ("\n".join(text).rstrip() + "\n").encode())
        written.append(path)
    return written


def answer_lines(out: Path) -> list[str]:
    """The answer of each section, under the values of its other axes.

    Raises:
        UsageError, ModelFileError: as :func:`simulations.experiments.gather.sections`.
    """
    away = elsewhere(out)
    lines: list[str] = []
    for section in sections(out):
        tables = next((tables for place, tables in away if place == dict(section.place)), [])
        said = answer(section, tables)
        title = [f"### {_title(section)}", ""] if said and section.place else []
        lines += [*title, *said]
    return lines


def _head(out: Path, index: dict[str, object]) -> Iterator[str]:
    cells = index["cells"]
    assert isinstance(cells, list)
    found = outcome(out, [cell["name"] for cell in cells])
    yield f"# {index['experiment']}"
    yield ""
    yield f"{index['about']}"
    yield ""
    yield (
        f"{len(found.done)} of {len(cells)} cells have metrics. Every number below is computed from them by "
        "`fed-diffmic experiment report`. **For research, not a medical device.**"
    )
    yield ""
    if found.failed:
        yield f"Without metrics: {', '.join(f'{name} ({why.cause})' for name, why in sorted(found.failed.items()))}."
        yield ""


def _rules(folded: bool) -> Iterator[str]:
    over = "all of its images" if folded else "its test images over the seeds"
    interval = (
        "over patients or lesions and over seeds (`simulations/experiments/folds.py`)"
        if folded
        else "over seeds (corrected resampled t-test of Nadeau and Bengio 2003, because the seeds share images)"
    )
    yield (
        f"At each site a class counts if {over} hold at least {LEAST_POSITIVES} with it and as many without. Of one "
        "class alone there is no balanced accuracy. *Above* and *below* mean "
        f"that the 95 % interval of the paired difference excludes zero, {interval}; anything else is *not shown*. A "
        "star: also with p below 0.05 after Holm's correction over all comparisons of the table."
    )
    yield ""


def number(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return "-"
    spread = f" ({defined.std(ddof=1):.3f})" if len(defined) > 1 else ""
    return f"{defined.mean():.3f}{spread}"


def _title(section: Section) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in section.place.items()) or "All methods"


def _section_lines(section: Section) -> list[str]:
    lines = [f"## {_title(section)}", "", f"{len(section.seeds)} seed(s): {', '.join(section.seeds)}."]
    if section.folds:
        held = "; ".join(f"{site} {count}" for site, count in section.images.items())
        lines.append(f"{section.folds} folds; images, each tested once: {held}.")
    if section.left_out:
        lines.append(f"Left out, because some method lacks them: {', '.join(section.left_out)}.")
    counted = "; ".join(
        f"{site}: {', '.join(section.classes[c] for c in judged) or 'none'}" for site, judged in section.judged.items()
    )
    lines += ["", f"Classes that count: {counted}.", ""]
    for figure in METRICS:
        lines += [f"### {NAMES[figure]}", ""]
        rows = [
            [method, *(number(section.values[method, place, figure]) for place in section.places)]
            for method in section.methods
        ]
        lines += table(["mean (standard deviation) over seeds", *section.places], rows)
        for reference in COMPARED:
            found = differences(section, reference, figure)
            if found:
                rows = [
                    [method, *(gap_text(found.get((method, place))) for place in section.places)]
                    for method in section.methods
                    if method != reference
                ]
                lines += table([f"minus {reference}", *section.places], rows)
        lines += _verdict_lines(section, figure)
    costs = [
        [method, f"{sent / 1e6:,.2f}", megabytes(section.to_reach.get(method, math.nan))]
        for method, sent in section.bytes_sent.items()
    ]
    head = ["method", "MB of tensors, both ways", f"MB until {SHARE} of its last round's validation AUROC, last stage"]
    return [*lines, *table(head, costs)]


def megabytes(count: float) -> str:
    """Bytes in MB of 10**6."""
    return "-" if math.isnan(count) else f"{count / 1e6:,.2f}"


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
    return table(["method", "sites above local", "mean / pooled's mean", "worst site / pooled's worst"], rows)


def _latex(section: Section) -> list[str]:
    def plain(text: str) -> str:
        for mark in "&%_#$":
            text = text.replace(mark, f"\\{mark}")
        return text

    lines = []
    for figure in METRICS:
        lines += [f"% {NAMES[figure]}: {', '.join(f'{a} {v}' for a, v in section.place.items()) or 'all methods'}"]
        lines += [f"\\begin{{tabular}}{{l{'r' * len(section.places)}}}", "\\hline"]
        lines += [" & ".join(["method", *map(plain, section.places)]) + " \\\\", "\\hline"]
        for method in section.methods:
            row = [plain(method), *(number(section.values[method, p, figure]) for p in section.places)]
            lines.append(" & ".join(row) + " \\\\")
        lines += ["\\hline", "\\end{tabular}", ""]
    return lines
