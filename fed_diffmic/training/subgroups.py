"""How good a model is for each subgroup of a site's images, and which of it may be shown.

``dataset.subgroups`` names columns of the site's table. Metrics of a value are made if it has images and patients
enough. What leaves a site is less (:func:`enough`): as much as its policy asks for, and nothing from which a value
that has too few images or patients could be had by subtraction (:func:`fed_diffmic.training.few.suppress`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training.coverage import BOUNDS, BY_CLASS, coverage
from fed_diffmic.training.few import suppress
from fed_diffmic.training.metrics import Scored, interval, number, replicates
from fed_diffmic.training.sureness import Sureness

PREFIX = "subgroup/"
METRICS = ("auroc_macro", "balanced_accuracy")
LEAST_IMAGES, LEAST_PATIENTS = 10, 5
MOST = 200
SHOWN = f"lac{BY_CLASS}"  # the kind of prediction set that `predict` shows
Subgroups = dict[str, dict[str, dict[str, Any]]]


def subgroup_metrics(
    scored: Scored,
    texts: np.ndarray,
    classes: Sequence[str],
    *,
    bootstrap: int,
    seed: int,
    sureness: Sureness | None = None,
    least: int = LEAST_IMAGES,
) -> Subgroups:
    """Metrics of each value of each column, ``column -> value -> metrics``; what rests on too few has no metrics.

    Args:
        scored: predictions on test images.
        texts: ``(N,)`` what each image says of its subgroups (:mod:`fed_diffmic.data.subgroups`).
        classes: names.
        bootstrap: resamples of groups; 0: no intervals.
        seed: of the resamples.
        sureness: of the model, for coverage; none: it has no prediction sets.
        least: images.

    Returns:
        each value's ``n``, ``groups``, each of :data:`METRICS` and ``coverage`` as ``{value, low, high}``; of a value
        that is not shown ``n`` is none and there is nothing else. Balanced accuracy is the mean sensitivity over the
        classes that the subgroup's images hold.
    """
    members: dict[str, dict[str, list[int]]] = {}
    for place, text in enumerate(texts):
        for pair in str(text).split("|") if text else ():
            column, _, value = pair.partition("=")
            members.setdefault(column, {}).setdefault(value, []).append(place)
    out: Subgroups = {}
    for column, values in sorted(members.items()):
        out[column] = {}
        for name in sorted(values):
            index = np.array(values[name])
            groups = len(np.unique(scored.groups[index]))
            out[column][name] = {"n": None}
            if len(index) >= least and groups >= min(least, LEAST_PATIENTS):
                part = _part(scored, index)
                out[column][name] = {"n": len(index), "groups": groups, **_metrics(part, bootstrap, seed, name)}
                found = {} if sureness is None else coverage(part, sureness, classes)
                first = found.get(SHOWN, dict.fromkeys(BOUNDS))
                out[column][name]["coverage"] = {key: first[key] for key in BOUNDS}
    return out


def _part(scored: Scored, index: np.ndarray) -> Scored:
    parts = (scored.probabilities[index], scored.decided[index], scored.labels[index], scored.groups[index])
    return Scored(*parts, scored.task)


def _metrics(part: Scored, bootstrap: int, seed: int, name: str) -> dict[str, Any]:
    point, drawn = replicates(part, bootstrap, numpy_generator(seed, "bootstrap", name))
    found = {}
    for metric in METRICS:
        low, high = interval(drawn[metric])
        found[metric] = {"value": number(point[metric][0]), "low": low, "high": high}
    return found


def flat(found: Subgroups) -> dict[str, float]:
    """As flat numbers, ``subgroup/COLUMN/VALUE/FIGURE[/low|/high]``, in which form they can leave a site."""
    out: dict[str, float | None] = {}
    for column, values in found.items():
        for value, cell in values.items():
            if cell["n"] is None:
                continue
            head = f"{PREFIX}{column}/{value}"
            out |= {f"{head}/n": cell["n"], f"{head}/groups": cell["groups"]}
            for metric in (*METRICS, "coverage"):
                out |= {f"{head}/{metric}/{key}": cell[metric][key] for key in BOUNDS}
    return {name: float(number) for name, number in out.items() if number is not None}


def subgroups_from(metrics: Mapping[str, float]) -> Subgroups:
    """What a site's flat numbers describe, but for names that cannot be shown and values beyond :data:`MOST`."""
    out: Subgroups = {}
    for name in sorted(metrics):
        parts = name.split("/")
        if parts[0] + "/" != PREFIX or len(parts) != 4 or parts[3] != "n":
            continue
        column, value = parts[1:3]
        if not f"{column}{value}".isprintable() or len(name) > 120 or sum(map(len, out.values())) >= MOST:
            continue
        head = f"{PREFIX}{column}/{value}"
        cell: dict[str, Any] = {"n": int(metrics[name]), "groups": int(metrics.get(f"{head}/groups", 0))}
        for metric in (*METRICS, "coverage"):
            cell[metric] = {key: metrics.get(f"{head}/{metric}/{key}") for key in BOUNDS}
        out.setdefault(column, {})[value] = cell
    return out


def enough(metrics: Mapping[str, float], images: int, patients: int) -> dict[str, float]:
    """Metrics without those of subgroups that rest on too few, and of those from which their number could be had.

    Args:
        metrics: flat.
        images, patients: the least behind a subgroup's metrics.
    """
    columns: dict[str, dict[str, int]] = {}
    for name, value in metrics.items():
        parts = name.split("/")
        if parts[0] + "/" == PREFIX and len(parts) == 4 and parts[3] == "n":
            columns.setdefault(parts[1], {})[parts[2]] = int(value)
    hidden = set()
    for column, values in columns.items():
        names = sorted(values)
        owners = [int(metrics.get(f"{PREFIX}{column}/{of}/groups", 0)) for of in names]
        shown = suppress([values[of] for of in names], images, owners, patients)
        hidden |= {f"{PREFIX}{column}/{of}/" for of, n in zip(names, shown, strict=True) if n is None}
    return {name: value for name, value in metrics.items() if "/".join(name.split("/")[:3]) + "/" not in hidden}
