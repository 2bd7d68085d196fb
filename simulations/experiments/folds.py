"""Metrics over folds: every image of a site is a test image once, and the predictions of all folds are read together.

With an axis ``fold`` a site's metric rests on all of its images instead of a fifth, each judged by a model that never
saw its group. A metric of a seed is that of all folds' predictions together; the metric of a method is the mean over
seeds, each seed a repeat of the whole: new folds, new initial weights.

**Interval.** Two things move a metric: which patients a site happened to have, and the training. For the first the
seeds share their images, so an image's share in the metric is averaged over the seeds before anything is squared: for
macro AUROC DeLong's variance with groups (:mod:`fed_diffmic.training.delong`), for balanced accuracy a bootstrap that
draws whole groups, the same ones for every method and seed. For the second: the variance of the seeds' own differences,
over their number. Both are added; the interval is Student's with the degrees of freedom of Welch and Satterthwaite.
With one seed the second part is unknown and left out, and the report says so. Sites are independent; a mean over sites
weighs them alike. Where the seeds hold other images at a site (a partition that is drawn anew by each seed) their
variances are not averaged down: they are taken as fully dependent, which errs towards too wide an interval.

The models of two folds share most of their training images, and scores of several models stand in one ranking: both
make an out-of-fold AUROC a little lower than that of one model, for every method alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from fed_diffmic.errors import UsageError
from fed_diffmic.files import load_tensors, read_json
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training.delong import macro_influence, standard_error
from fed_diffmic.training.weighted import resample_weights
from simulations.experiments.compare import (
    MEAN,
    METRICS,
    PERSONAL,
    REFERENCES,
    WORST,
    Difference,
    Predictions,
    Section,
    check_same_images,
    counting,
    metrics,
    over_sites,
    positives,
)
from simulations.experiments.reach import mean_bytes_to_reach

RESAMPLES = 1000
AT_ONCE = 200
Cells = Mapping[str, Mapping[str, Sequence[Path]]]
"""Method -> seed -> the folder of each fold's run."""


@dataclass(frozen=True)
class Measured:
    """One method at one site in one seed.

    Attributes:
        value: both metrics, as :data:`METRICS`.
        influence: ``(N,)`` of each image on macro AUROC.
        right: ``(N, C)`` whether decision and truth agree, for each class that counts.
    """

    value: tuple[float, float]
    influence: np.ndarray
    right: np.ndarray


def out_of_fold(folders: Sequence[Path], file: str = "predictions.safetensors") -> Predictions:
    """All folds' test predictions of one run's settings together, images in the order of their content keys.

    Raises:
        UsageError: the runs hold no keys (an older version), or an image is a test image twice.
        ModelFileError: a file is torn.
    """
    runs = [load_tensors(folder / file) for folder in folders]
    sites = sorted(name.partition("|")[0] for name in runs[0] if name.endswith("|keys"))
    if not sites:
        raise UsageError(
            f"{folders[0]}: its predictions do not say of which images they are", "Run the experiment again."
        )
    result: Predictions = {}
    for site in sites:
        own = [name for name in runs[0] if name.split("|")[-2] == site]
        joined = {name: np.concatenate([run[name] for run in runs]) for name in own}
        offset = np.concatenate([np.full(len(run[f"{site}|groups"]), n) for n, run in enumerate(runs)])
        pairs = np.stack([offset, joined[f"{site}|groups"]], axis=1)
        joined[f"{site}|groups"] = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
        held = np.unique(np.stack([joined[f"{site}|keys"], offset], axis=1), axis=0)[:, 0]
        if len(np.unique(held)) < len(held):
            raise UsageError(
                f"{folders[0]}: at {site} an image is a test image of two folds of one seed",
                "The table, or a setting of the partition, changed between the folds: run them anew in another --out.",
            )
        order = np.argsort(joined[f"{site}|keys"], kind="stable")
        result |= {name: value[order] for name, value in joined.items()}
    return result


def folded_section(place: Mapping[str, str], cells: Cells, folds: int) -> Section:
    """The section of the cells that share every axis but ``seed``, ``method`` and ``fold``.

    Args:
        place: value of each other axis.
        cells: finished runs; a seed of which a method lacks a fold is left out.
        folds: how many there are.

    Raises:
        UsageError: two methods of one seed were not tested on the same images, or two folds on the same.
    """
    everywhere = list(dict.fromkeys(seed for runs in cells.values() for seed in runs))
    seeds = [seed for seed in everywhere if all(len(runs.get(seed, ())) == folds for runs in cells.values())]
    left_out = tuple(seed for seed in everywhere if seed not in seeds)
    if not seeds:
        return Section(place, (), left_out, (), {}, {}, math.nan, {}, folds=folds)
    pooled = {method: [out_of_fold(runs[seed]) for seed in seeds] for method, runs in cells.items()}
    first = next(iter(pooled.values()))
    told = read_json(next(iter(cells.values()))[seeds[0]][0] / "summary.json")
    classes, sites = tuple(told["classes"]), sorted(told["sites"])
    check_same_images(pooled, sites, seeds)
    judged = {site: counting([positives(t, site, len(classes)) for t in first]) for site in sites}
    measured = {
        name: {site: [measure(t, arm, site, judged[site]) for arm, t in found] for site in sites}
        for name, found in _series(pooled).items()
    }
    values = _values(measured)
    gaps: dict[tuple[str, str, str, str], Difference] = {}
    main = next(name for name in measured if name not in REFERENCES)
    own = [name for name in (f"{main}: {kind}" for kind in PERSONAL) if name in measured]
    for reference in (*(name for name in REFERENCES if name in measured), main, *own):
        for method in own if reference in own else measured:
            if method != reference:
                found = _gaps(measured[method], measured[reference], first, judged)
                gaps |= {(method, reference, where, metric): gap for (where, metric), gap in found.items()}
    said = {
        method: [read_json(f / "summary.json") for seed in seeds for f in runs[seed]] for method, runs in cells.items()
    }
    sent = {method: float(np.mean([s["bytes_sent"] for s in found])) for method, found in said.items()}
    images = {site: len(first[0][f"{site}|labels"]) for site in sites}
    anew = not all(aligned(first, site) for site in sites)
    return Section(
        place,
        tuple(seeds),
        left_out,
        classes,
        judged,
        values,
        math.nan,
        sent,
        folds=folds,
        images=images,
        gaps=gaps,
        drawn_anew=anew,
        to_reach={method: mean_bytes_to_reach(found) for method, found in said.items()},
    )


def _values(measured: Mapping[str, Mapping[str, Sequence[Measured]]]) -> dict[tuple[str, str, str], np.ndarray]:
    """``(J,)`` for each (method, place, metric)."""
    values: dict[tuple[str, str, str], np.ndarray] = {}
    for name, at in measured.items():
        for position, metric in enumerate(METRICS):
            each = np.array([[one.value[position] for one in found] for found in at.values()])
            values |= {(name, site, metric): row for site, row in zip(at, each, strict=True)}
            values[name, MEAN, metric] = over_sites(each, np.nanmean)
            values[name, WORST, metric] = over_sites(each, np.nanmin)
    return values


def _series(pooled: Mapping[str, Sequence[Predictions]]) -> dict[str, list[tuple[str, Predictions]]]:
    """Arm and predictions by seed of each compared model: a method's federation, the first references, others."""
    series: dict[str, list[tuple[str, Predictions]]] = {}
    for method, found in pooled.items():
        arms = {name.split("|")[0] for t in found for name in t if name.endswith("|probabilities")}
        for arm in sorted(arms):
            first_one = arm in REFERENCES and arm not in series
            name = method if arm == "federated" else arm if first_one else f"{method}: {arm}"
            series[name] = [(arm, t) for t in found]
    return series


def measure(tensors: Predictions, arm: str, site: str, judged: np.ndarray) -> Measured:
    """One model's out-of-fold predictions at a site."""
    p, decided = (tensors[f"{arm}|{site}|{what}"] for what in ("probabilities", "decided"))
    truth = positives(tensors, site, p.shape[1])
    hit = decided > 0 if decided.ndim == 2 else decided[:, None] == np.arange(p.shape[1])
    _, influence = macro_influence(p, truth, judged.tolist())
    return Measured(metrics(tensors, arm, site, judged), influence, (hit == truth)[:, judged])


def balanced_accuracy(right: np.ndarray, truth: np.ndarray, weights: np.ndarray, several: bool) -> np.ndarray:
    """``(R,)`` mean recall over the classes that a resample holds (several labels: the mean of both recalls).

    Args:
        right: ``(N, C)`` whether the decision agrees with the truth; truth: ``(N, C)``; weights: ``(N, R)``.
    """

    def recall(inside: np.ndarray) -> np.ndarray:
        counts = weights.T @ inside.astype(np.float64)
        hits = weights.T @ (inside & right).astype(np.float64)
        return np.divide(hits, counts, out=np.full(counts.shape, np.nan), where=counts > 0)

    found = recall(truth)
    if several:
        found = (found + recall(~truth)) / 2
    defined = ~np.isnan(found)
    total = np.where(defined, found, 0.0).sum(axis=1)
    return np.divide(total, defined.sum(axis=1), out=np.full(len(total), np.nan), where=defined.any(axis=1))


def _gaps(
    ours: Mapping[str, Sequence[Measured]],
    theirs: Mapping[str, Sequence[Measured]],
    images: Sequence[Predictions],
    judged: Mapping[str, np.ndarray],
) -> dict[tuple[str, str], Difference]:
    """Differences at each site and of the mean over sites, by (place, metric)."""
    found: dict[tuple[str, str], Difference] = {}
    for position, (metric, error) in enumerate(zip(METRICS, (bootstrap_error, delong_error), strict=True)):
        errors, degrees, every = [], [], []
        for site in ours:
            pairs = zip(ours[site], theirs[site], strict=True)
            gaps = np.array([a.value[position] - b.value[position] for a, b in pairs])
            if np.isnan(gaps).any():
                continue
            degrees.append(len(np.unique(images[0][f"{site}|groups"])) - 1)
            known = degrees[-1] > 0  # of one patient nothing follows for another, nor for a mean that has it
            errors.append(error(ours[site], theirs[site], images, site, judged[site]) if known else math.inf)
            every.append(gaps)
            found[site, metric] = combined(gaps, errors[-1], degrees[-1])
        if errors:
            whole = math.sqrt(sum(e**2 for e in errors)) / len(errors)
            found[MEAN, metric] = combined(np.mean(every, axis=0), whole, sum(degrees))
    return {key: gap for key, gap in found.items() if math.isfinite(gap.low)}


def aligned(images: Sequence[Predictions], site: str) -> bool:
    """Whether every seed holds the same images at a site, so that what they share can be seen image by image."""
    return all(np.array_equal(t[f"{site}|keys"], images[0][f"{site}|keys"]) for t in images[1:])


def delong_error(
    ours: Sequence[Measured], theirs: Sequence[Measured], images: Sequence[Predictions], site: str, judged: np.ndarray
) -> float:
    """Standard error of the mean difference in macro AUROC over which patients there are (DeLong, with groups)."""
    each = [a.influence - b.influence for a, b in zip(ours, theirs, strict=True)]
    groups = [t[f"{site}|groups"] for t in images]
    if aligned(images, site):
        return standard_error(np.mean(each, axis=0), groups[0])
    return float(np.mean([standard_error(e, g) for e, g in zip(each, groups, strict=True)]))


def bootstrap_error(
    ours: Sequence[Measured], theirs: Sequence[Measured], images: Sequence[Predictions], site: str, judged: np.ndarray
) -> float:
    """Standard error of the mean difference in balanced accuracy over which patients there are (groups resampled)."""
    each = []
    together = aligned(images, site)
    for seed, (a, b, tensors) in enumerate(zip(ours, theirs, images, strict=True)):
        held = images[0] if together else tensors
        truth = positives(tensors, site, max(judged, default=0) + 1)[:, judged]
        several = tensors[f"{site}|labels"].ndim == 2
        rng = numpy_generator(0, "bootstrap", site, *([] if together else [seed]))
        parts = []
        for _ in range(RESAMPLES // AT_ONCE):
            weights = resample_weights(held[f"{site}|groups"], AT_ONCE, rng)
            first, second = (balanced_accuracy(one.right, truth, weights, several) for one in (a, b))
            parts.append(first - second)
        each.append(np.concatenate(parts))
    if together:
        return float(np.nanstd(np.mean(each, axis=0), ddof=1))
    return float(np.mean([np.nanstd(one, ddof=1) for one in each]))


def combined(gaps: np.ndarray, error: float, degrees: int) -> Difference:
    """A mean over seeds with its interval.

    Args:
        gaps: ``(J,)`` difference in each seed.
        error: standard error of their mean over which patients there are.
        degrees: degrees of freedom of ``error``: groups less one; with none the interval is without end.
    """
    count, mean = len(gaps), float(gaps.mean())
    training = float(gaps.var(ddof=1)) / count if count > 1 else 0.0
    variance = error**2 + training
    if not math.isfinite(variance) or degrees < 1:
        return Difference(mean, -math.inf, math.inf, 1.0, int((gaps > 0).sum()))
    if variance == 0.0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, int((gaps > 0).sum()))
    below = (training**2 / (count - 1) if count > 1 else 0.0) + error**4 / degrees
    freedom = variance**2 / below
    scale = math.sqrt(variance)
    reach = float(stats.t.ppf(0.975, freedom)) * scale
    p = float(2.0 * stats.t.sf(abs(mean) / scale, freedom))
    return Difference(mean, mean - reach, mean + reach, p, int((gaps > 0).sum()))
