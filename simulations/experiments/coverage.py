"""How often prediction sets held the truth over the folds and seeds of an experiment, from its cells' own predictions.

Every cell has thresholds of its own, from its own validation images, and test images that took part in neither training
nor thresholds. With an axis ``fold`` every image of a seed is judged once, by a model and thresholds that never saw its
patient; a seed's coverage is the share over all of them, and what is reported is the mean over seeds.

**Interval.** Seeds judge the same images again, so they make none more: the interval is the exact one of a share
(Clopper and Pearson 1934) of as many images as one seed has, the fewest of any, widened for images of one patient by
Kish's design effect. It holds which patients were tested, not which images thresholds came from; that is what the range
over seeds is beside it for, which is no interval.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fed_diffmic.errors import UsageError
from fed_diffmic.files import atomic_write, load_tensors, read_json
from fed_diffmic.training import conformal
from fed_diffmic.training.binomial import clopper_pearson, design_effect
from fed_diffmic.training.conformal import USUAL
from fed_diffmic.training.coverage import BY_CLASS, KINDS
from fed_diffmic.training.sureness import Sureness
from simulations.experiments.answer import table
from simulations.experiments.gather import grouped
from simulations.experiments.runner import read_index

CSV, PAGE = "coverage.csv", "coverage.md"
ALL = "all"
INSIDE, BELOW, ABOVE = "inside", "below", "above"


@dataclass(frozen=True)
class Judged:
    """Test images of one seed, all its folds together, under one kind of prediction sets.

    Attributes:
        hits: ``(N,)`` share of an image's questions whose set held the truth.
        sizes: ``(N,)`` mean number of states in its sets.
        labels: ``(N,)`` class index; none of several labels.
        sites: ``(N,)`` names.
        groups: ``(N,)``, patients, none of two sites or folds alike.
    """

    hits: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None
    sites: np.ndarray
    groups: np.ndarray

    def of(self, site: str, label: int | None) -> np.ndarray:
        """``(N,)`` bool, the images of a site (or all) and a class (or all)."""
        some = np.ones(len(self.hits), dtype=bool) if site == ALL else self.sites == site
        return some if label is None or self.labels is None else some & (self.labels == label)


@dataclass(frozen=True)
class Row:
    """Coverage at one place.

    Attributes:
        place: value of each other axis of the experiment.
        method: of the experiment.
        kind: of prediction sets (:data:`fed_diffmic.training.coverage.KINDS`).
        site, label: whose images; :data:`ALL`, or empty for all classes.
        value, low, high: mean over seeds, 95 % interval.
        least, most: of the seeds' own values.
        size: mean number of classes in a set.
        n: images of a seed, the fewest of any.
    """

    place: Mapping[str, str]
    method: str
    kind: str
    site: str
    label: str
    value: float
    low: float
    high: float
    least: float
    most: float
    size: float
    n: int

    def verdict(self, level: float) -> str:
        """Where what was promised lies: inside the interval, or coverage is below or above it."""
        return BELOW if self.high < level else ABOVE if self.low > level else INSIDE


def judged(folders: Sequence[Path], kind: str, level: float) -> Judged | None:
    """The test images of one seed's folds; none where a run has no prediction sets of this kind.

    Raises:
        ModelFileError: a finished cell's files are torn.
    """
    method = kind.removesuffix(BY_CLASS)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    several = False
    for fold, folder in enumerate(folders):
        summary, tensors = read_json(folder / "summary.json"), load_tensors(folder / "predictions.safetensors")
        rule = Sureness.from_json(summary["sureness"]).rule(method, level) if summary.get("sureness") else None
        if rule is None:
            return None
        task = summary["task"]
        several = task == "multilabel"
        for site in sorted(summary["sites"]):
            p = tensors[f"federated|{site}|probabilities"].astype(np.float64)
            labels, groups = tensors[f"{site}|labels"], tensors[f"{site}|groups"]
            if not len(p):
                continue
            sets = conformal.members(p, task, rule, by_state=kind != method)
            hits = conformal.covered(sets, labels, task).mean(axis=1)
            names = np.array([f"{fold}|{site}|{group}" for group in groups])
            parts.append((hits, sets.sum(axis=2).mean(axis=1), labels, np.full(len(p), site), names))
    if not parts:
        return None
    hits, sizes, labels, sites, groups = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Judged(hits, sizes, None if several else labels, sites, groups)


def row_of(seeds: Sequence[Judged], site: str, label: int | None) -> tuple[float, ...] | None:
    """``value, low, high, least, most, size, n`` at one place; none where a seed has no image there."""
    some = [one.of(site, label) for one in seeds]
    if not all(mask.any() for mask in some):
        return None
    values = [float(one.hits[mask].mean()) for one, mask in zip(seeds, some, strict=True)]
    effective = min(mask.sum() / design_effect(one.groups[mask]) for one, mask in zip(seeds, some, strict=True))
    size = float(np.mean([one.sizes[mask].mean() for one, mask in zip(seeds, some, strict=True)]))
    value = float(np.mean(values))
    low, high = clopper_pearson(value * effective, effective)
    return value, low, high, min(values), max(values), size, min(int(mask.sum()) for mask in some)


def coverage_rows(out: Path, level: float = USUAL) -> list[Row]:
    """Coverage over all images, at each site, of each class, and of each class at each site.

    Args:
        out: folder of an experiment. A seed that lacks a fold is left out.
        level: that is promised.

    Raises:
        UsageError: it holds no experiment, or no cell with prediction sets at that level.
        ModelFileError: a finished cell's files are torn.
    """
    groups, folds = grouped(out)
    found = []
    for rest, methods in groups.items():
        for method, runs in methods.items():
            whole = [folders for folders in runs.values() if len(folders) == max(folds, 1)]
            for kind in KINDS if whole else ():
                told = [judged(folders, kind, level) for folders in whole]
                seeds = [one for one in told if one is not None]
                if seeds and len(seeds) == len(told):
                    classes = [str(name) for name in read_json(whole[0][0] / "summary.json")["classes"]]
                    found += _rows(dict(rest), method, kind, seeds, classes)
    if not found:
        said = f"{out}: no seed has all its folds, with prediction sets at {level:g}"
        raise UsageError(said, "Run it to its end first: `fed-diffmic experiment run`.")
    return found


def _rows(place: dict[str, str], method: str, kind: str, seeds: Sequence[Judged], classes: Sequence[str]) -> list[Row]:
    sites = sorted({str(site) for one in seeds for site in one.sites})
    labels = [None, *range(len(classes))] if seeds[0].labels is not None else [None]
    rows = []
    for site in [ALL, *sites]:
        for label in labels:
            told = row_of(seeds, site, label)
            if told is not None:
                name = "" if label is None else classes[label]
                value, low, high, least, most, size, n = told
                rows.append(Row(place, method, kind, site, name, value, low, high, least, most, size, int(n)))
    return rows


def write_coverage(out: Path, level: float = USUAL) -> list[Path]:
    """Write ``coverage.csv`` and ``coverage.md``; the same cells give the same bytes.

    Raises:
        UsageError, ModelFileError: as :func:`coverage_rows`.
    """
    rows = coverage_rows(out, level)
    axes = [axis for axis in read_index(out)["axes"] if axis in rows[0].place]
    names = ["method", "kind", "site", "label", "value", "low", "high", "least", "most", "size", "n"]
    lines = [
        {**row.place, **{name: getattr(row, name) for name in names}, "level": level, "promise": row.verdict(level)}
        for row in rows
    ]
    stream = io.StringIO()
    pd.DataFrame(lines, columns=[*axes, *names, "level", "promise"]).to_csv(stream, index=False, lineterminator="\n")
    text = "\n".join(page_lines(out, rows, level)).rstrip() + "\n"
    files = {out / CSV: stream.getvalue(), out / PAGE: text}
    return [atomic_write(path, data.encode()) for path, data in files.items()]


def page_lines(out: Path, rows: Sequence[Row], level: float) -> list[str]:
    """The tables in Markdown: a line for each kind of sets at each place, and one for each class."""
    index = read_index(out)
    lines = [f"# Coverage of prediction sets: {index['experiment']}", "", str(index["about"]), ""]
    lines += [
        f"Promised: {level:g}. In brackets the 95 % interval over patients, then the range of the seeds' own values; "
        "*inside*: what was promised lies in the interval. **For research, not a medical device.**",
        "",
    ]
    sections = list(dict.fromkeys((tuple(row.place.items()), row.method) for row in rows))
    for place, method in sections:
        own = [row for row in rows if (tuple(row.place.items()), row.method) == (place, method)]
        title = ", ".join([*(f"{axis} {value}" for axis, value in place), *([method] if len(sections) > 1 else [])])
        lines += [f"## {title or 'All cells'}", ""]
        head = ["sets", "images of", "n", "held the truth", "seeds", "promise", "classes in a set"]
        lines += table(head, [[r.kind, r.site, *_cells(r, level), f"{r.size:.2f}"] for r in own if not r.label])
        head = ["sets", "class", "n", "held the truth", "seeds", "promise"]
        lines += table(head, [[r.kind, r.label, *_cells(r, level)] for r in own if r.label and r.site == ALL])
    return lines


def _cells(row: Row, level: float) -> list[str]:
    share = f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
    return [str(row.n), share, f"{row.least:.3f} to {row.most:.3f}", row.verdict(level)]
