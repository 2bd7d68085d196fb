"""The cross-site matrix: every model on every site's test images, and which of its cells may be compared.

A macro metric is a mean over the classes that a site's test images hold, so two columns whose sites hold other classes
are means over other things: ``classes`` says over what, and :func:`comparable` which sites agree. A cell in which some
class that is there has fewer than :data:`LEAST_POSITIVES` positives is shown but not ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import weighted
from fed_diffmic.training.coverage import coverage, coverage_from, coverage_metrics
from fed_diffmic.training.metrics import Scored, interval, number, replicates
from fed_diffmic.training.subgroups import subgroups_from
from fed_diffmic.training.sureness import Sureness

LEAST_POSITIVES = 10
SPECIFICITY = 0.9
METRICS = ("balanced_accuracy", "auroc_macro", "ece")
AT_ONCE = 200  # resamples held in memory together
AT_SPECIFICITY = "sensitivity_at_specificity"
TEST = "test/"  # what the metrics of a cell are called when they leave a site


def sensitivity_at(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, specificity: float) -> np.ndarray:
    """Largest sensitivity of a threshold whose specificity is at least ``specificity``, ``(R,)``.

    Args:
        scores: ``(N,)``; an image is called positive if its score is above the threshold.
        positive: ``(N,)`` bool.
        weights: ``(N, R)`` whole numbers.

    Returns:
        ``nan`` where positives or negatives are missing. No interpolation between thresholds: every value is reached.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth, w = scores[order], positive[order], weights[order]
    ends = np.r_[np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1] if len(ranked) else np.zeros(0, int)
    hits = np.concatenate([np.zeros((1, w.shape[1])), np.cumsum(w * truth[:, None], axis=0)[ends]])
    alarms = np.concatenate([np.zeros((1, w.shape[1])), np.cumsum(w * ~truth[:, None], axis=0)[ends]])
    sensitivity = weighted.divide(hits, hits[-1:])
    allowed = weighted.divide(alarms, alarms[-1:]) <= 1.0 - specificity + 1e-12
    best = np.where(allowed, sensitivity, -1.0).max(axis=0)
    best[(hits[-1] == 0) | (alarms[-1] == 0)] = np.nan
    return np.asarray(best)


def matrix_cell(
    scored: Scored, classes: Sequence[str], *, bootstrap: int, seed: int, name: str, sureness: Sureness | None = None
) -> dict[str, Any]:
    """Metrics of one model on one site's test images.

    Args:
        scored: its predictions.
        classes: names.
        bootstrap: resamples of groups; 0: no intervals.
        seed, name: of the resamples: the same site is resampled alike for every model.
        sureness: of the model; none: it has no prediction sets.

    Returns:
        ``n``, ``groups``, ``positives`` by class, ``classes`` (those present), ``ranked``, and each of :data:`METRICS`
        and :data:`AT_SPECIFICITY` (macro over the classes present) as ``{value, low, high}``; ``coverage`` of its
        prediction sets (:func:`fed_diffmic.training.coverage.coverage`).
    """
    positives = scored.positives
    present = [c for c in range(len(classes)) if 0 < positives[c] < len(scored.labels)]
    point, drawn = replicates(scored, bootstrap, numpy_generator(seed, "bootstrap", name))
    found = {metric: (point[metric][0], drawn[metric]) for metric in METRICS}
    rng = numpy_generator(seed, "bootstrap", name)
    _, of_group = np.unique(scored.groups, return_inverse=True)
    parts = [_macro_sensitivity(scored, present, np.ones((len(scored.labels), 1)))]
    for start in range(0, bootstrap if of_group.max() > 0 else 0, AT_ONCE):
        weights = weighted.resample_weights(of_group, min(AT_ONCE, bootstrap - start), rng)
        parts.append(_macro_sensitivity(scored, present, weights))
    found[AT_SPECIFICITY] = (parts[0][0], np.concatenate(parts[1:]) if len(parts) > 1 else np.empty(0))
    least = min((int(positives[c]) for c in range(len(classes)) if positives[c]), default=0)
    cell: dict[str, Any] = {
        "n": len(scored.labels),
        "groups": len(np.unique(scored.groups)),
        "positives": {label: int(n) for label, n in zip(classes, positives, strict=True)},
        "classes": [classes[c] for c in present],
        "ranked": least >= LEAST_POSITIVES,
    }
    for metric, (value, resampled) in found.items():
        low, high = interval(resampled)
        cell[metric] = {"value": number(float(value)), "low": low, "high": high}
    cell["coverage"] = {} if sureness is None else coverage(scored, sureness, classes)
    return cell


def cell_metrics(cell: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
    """A cell as flat numbers, in which form it can leave a site; what is undefined is left out.

    Returns:
        ``n``, ``groups``, ``positives/<index of the class>``, ``complete`` (1: each count is the true one), each metric
        and its ``<metric>/low`` and ``<metric>/high``, all under :data:`TEST`.
    """
    found: dict[str, float] = {"n": cell["n"], "groups": cell["groups"], "complete": 1.0}
    found |= {f"positives/{index}": cell["positives"][label] for index, label in enumerate(classes)}
    for metric in (*METRICS, AT_SPECIFICITY):
        for key, name in (("value", metric), ("low", f"{metric}/low"), ("high", f"{metric}/high")):
            if cell[metric][key] is not None:
                found[name] = cell[metric][key]
    found |= coverage_metrics(cell.get("coverage") or {}, classes)
    return {TEST + name: float(value) for name, value in found.items()}


def cell_from(metrics: Mapping[str, float], classes: Sequence[str]) -> dict[str, Any]:
    """The cell that a site's flat numbers describe; what did not come is none.

    A count that was kept back is none, not 0. Then nobody knows over which classes a macro metric is a mean:
    ``classes`` is empty and the cell is not ranked.
    """
    said = [metrics.get(f"{TEST}positives/{index}") for index in range(len(classes))]
    counts = [None if count is None else int(count) for count in said]
    n, complete = int(metrics.get(f"{TEST}n", 0)), metrics.get(f"{TEST}complete") == 1.0 and None not in counts
    present = [label for label, count in zip(classes, counts, strict=True) if complete and 0 < (count or 0) < n]
    cell: dict[str, Any] = {
        "n": n,
        "groups": int(metrics.get(f"{TEST}groups", 0)),
        "positives": dict(zip(classes, counts, strict=True)),
        "classes": present,
        "complete": complete,
        "ranked": complete and min((count for count in counts if count), default=0) >= LEAST_POSITIVES,
    }
    for metric in (*METRICS, AT_SPECIFICITY):
        names = {"value": metric, "low": f"{metric}/low", "high": f"{metric}/high"}
        cell[metric] = {key: metrics.get(TEST + name) for key, name in names.items()}
    flat = {name.removeprefix(TEST): value for name, value in metrics.items() if name.startswith(TEST)}
    cell["coverage"] = coverage_from(flat, classes)
    told = subgroups_from(metrics)
    return {**cell, "subgroups": told} if told else cell


def rarest(cell: Mapping[str, Any]) -> int | None:
    """Positives of the rarest class that is there (0: no class is); none where some site kept counts back."""
    counts = list((cell.get("positives") or {}).values())
    return None if None in counts else min((n for n in counts if n), default=0)


def _macro_sensitivity(scored: Scored, present: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """Mean over the classes present of :func:`sensitivity_at`, ``(R,)``."""
    rows = []
    for c in present:
        truth = scored.labels[:, c] if scored.task == "multilabel" else scored.labels == c
        rows.append(sensitivity_at(scored.probabilities[:, c], np.asarray(truth, dtype=bool), weights, SPECIFICITY))
    return weighted.mean_of_defined(np.stack(rows, axis=-1)) if rows else np.full(weights.shape[1], np.nan)


def comparable(matrix: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Groups of columns whose macro metrics are means over the same classes, each group sorted, largest first.

    A site of which nobody knows over what classes is a group of its own.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in list(matrix.values())[:1]:
        for site, cell in row.items():
            groups.setdefault(tuple(cell["classes"]) or ("", site), []).append(site)
    return sorted((sorted(sites) for sites in groups.values()), key=lambda sites: (-len(sites), sites))
