"""Test sets from elsewhere in an experiment: every model of every seed and fold on the same images.

A metric of a seed is the mean over its folds' models, each judged alone. Its interval is made as in
:mod:`simulations.experiments.folds`: macro AUROC by DeLong's variance with groups, balanced accuracy by a bootstrap
over groups, each image's share averaged over all trainings first, and the variance between seeds added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fed_diffmic.files import load_tensors, read_json
from simulations.experiments.compare import METRICS, REFERENCES, Difference, Predictions, counting, positives
from simulations.experiments.folds import Cells, Measured, bootstrap_error, combined, delong_error, measure
from simulations.summary import EXTERNAL


@dataclass(frozen=True)
class Elsewhere:
    """One test set from elsewhere.

    Attributes:
        name: in the configuration.
        images, groups: of it.
        classes: names of those that count (:func:`simulations.experiments.compare.counting`).
        seeds: of which every model has metrics.
        values: ``(J,)`` of each (model, metric); models are methods, ``local/<site>`` and ``pooled``.
        gaps: a method's global model minus another model, by (method, model, metric).
    """

    name: str
    images: int
    groups: int
    classes: tuple[str, ...]
    seeds: tuple[str, ...]
    values: Mapping[tuple[str, str], np.ndarray]
    gaps: Mapping[tuple[str, str, str], Difference] = field(default_factory=dict)


def judged_elsewhere(cells: Cells, folds: int) -> list[Elsewhere]:
    """Every test set from elsewhere that all finished runs share; seeds that lack a fold are left out.

    Args:
        cells: method -> seed -> folder of each fold's run.
        folds: how many there are; 0: none, and one run a seed.

    Raises:
        ModelFileError: a file is torn.
    """
    everywhere = list(dict.fromkeys(seed for runs in cells.values() for seed in runs))
    seeds = [seed for seed in everywhere if all(len(runs.get(seed, ())) == max(folds, 1) for runs in cells.values())]
    folders = [f for runs in cells.values() for seed in seeds for f in runs[seed]]
    if not folders or not all((f / EXTERNAL).exists() for f in folders):
        return []
    classes = tuple(read_json(folders[0] / "summary.json")["classes"])
    runs = {m: {seed: [load_tensors(f / EXTERNAL) for f in own[seed]] for seed in seeds} for m, own in cells.items()}
    first = next(iter(runs.values()))[seeds[0]][0]
    names = sorted(key.partition("|")[0] for key in first if key.endswith("|keys"))
    return [_table(name, classes, seeds, runs) for name in names]


def _table(
    name: str,
    classes: tuple[str, ...],
    seeds: Sequence[str],
    runs: Mapping[str, Mapping[str, Sequence[Predictions]]],
) -> Elsewhere:
    first = next(iter(runs.values()))[seeds[0]][0]
    judged = counting([positives(first, name, len(classes))])
    measured: dict[str, list[list[Measured]]] = {}
    for method, by_seed in runs.items():
        rows = sorted(key.split("|")[0] for key in by_seed[seeds[0]][0] if key.endswith(f"|{name}|probabilities"))
        for row in rows:
            kind, _, site = row.partition("/")
            model = f"{method}{'/' if site else ''}{site}" if kind == "federated" else row
            if model not in measured and (kind == "federated" or kind in REFERENCES):
                measured[model] = [[measure(t, row, name, judged) for t in by_seed[seed]] for seed in seeds]
    values = {
        (model, metric): np.array([np.mean([one.value[position] for one in fold]) for fold in found])
        for model, found in measured.items()
        for position, metric in enumerate(METRICS)
    }
    gaps: dict[tuple[str, str, str], Difference] = {}
    groups = len(np.unique(first[f"{name}|groups"]))
    for method in runs:
        for other in measured if method in measured else ():
            if other.partition("/")[0] not in REFERENCES:
                continue
            ours, theirs = ([one for fold in measured[model] for one in fold] for model in (method, other))
            for metric, error in zip(METRICS, (bootstrap_error, delong_error), strict=True):
                found = values[method, metric] - values[other, metric]
                spread = (
                    error(ours, theirs, [first] * len(ours), name, judged) if not np.isnan(found).any() else math.inf
                )
                gap = combined(found, spread, groups - 1)
                if math.isfinite(gap.low):
                    gaps[method, other, metric] = gap
    shown = tuple(classes[c] for c in judged)
    return Elsewhere(name, len(first[f"{name}|labels"]), groups, shown, tuple(seeds), values, gaps)
