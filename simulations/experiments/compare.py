"""What an experiment shows: metrics of every method over seeds, against training alone and against pooled data.

**Which classes count.** At each site a class counts if its test images over all seeds hold at least
:data:`LEAST_POSITIVES` positives and as many others. Balanced accuracy is the mean recall and macro AUROC the mean
AUROC over these classes, the same for every method; a seed whose test images lack such a class leaves it out for all.
Of one class alone there is no balanced accuracy: its recall is 1 for a model that calls everything so.

**Interval.** A seed draws new splits of the same images, so the seeds are not independent and their spread alone is
too small. The interval of a difference is that of the corrected resampled t-test (Nadeau and Bengio 2003, "Inference
for the generalization error", section 4): with ``J`` seeds, variance ``s^2`` of the seed's paired differences and
``n_test`` and ``n_train`` images, ``mean +- t_{J-1} s sqrt(1/J + n_test/n_train)``. *Above* and *below* mean that it
excludes zero, anything else is *not shown*. The p-values of all comparisons with one reference and metric are corrected
together (Holm 1979).

With an axis ``fold`` the interval is another: :mod:`simulations.experiments.folds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from fed_diffmic.errors import UsageError
from fed_diffmic.files import load_tensors, read_json
from fed_diffmic.training import weighted
from simulations.experiments.reach import mean_bytes_to_reach

K = TypeVar("K")

LEAST_POSITIVES = 10
METRICS = ("balanced_accuracy", "auroc_macro")
MEAN, WORST = "mean over sites", "worst site"
REFERENCES = ("local", "pooled")
PERSONAL = ("finetune", "head", "mixture")
COMPARED = (*REFERENCES, "float32")
"""What every other method is compared with, seed by seed, where an experiment has it; the last is a method that
exchanges exactly."""
Predictions = dict[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """A method minus a reference, paired by seed.

    Attributes:
        mean, low, high: over the seeds; the interval is corrected for their overlap.
        p: two-sided; ``adjusted`` after Holm's correction.
        wins: seeds in which the method is above.
    """

    mean: float
    low: float
    high: float
    p: float
    wins: int
    adjusted: float = math.nan

    @property
    def verdict(self) -> str:
        """``above``, ``below`` or ``not shown``."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "not shown"

    @property
    def outlasts(self) -> bool:
        """Whether what it shows is shown after Holm's correction too."""
        return self.adjusted < 0.05 and self.verdict != "not shown"


@dataclass(frozen=True)
class Section:
    """The cells that share every axis but ``seed`` and ``method``.

    Attributes:
        place: value of each other axis.
        seeds: those of which every method has metrics, in the order of the experiment.
        left_out: seeds that some method lacks.
        classes: names; judged: at each site the positions of those that count.
        values: ``(J,)`` for each (method, place, metric); the places are the sites, :data:`MEAN` and :data:`WORST`.
            ``nan`` where nothing is defined.
        ratio: ``n_test / n_train`` of the splits, all sites together; ``nan`` with folds.
        bytes_sent: mean tensor bytes of a method's federation.
        folds: 0, or how many: every image is a test image once (:mod:`simulations.experiments.folds`).
        images: with folds, images of each site, all of them tested.
        gaps: with folds, difference of (method, reference, place, metric).
        drawn_anew: with folds, the seeds hold other images at a site.
        to_reach: mean tensor bytes until a method was nearly as good as it became
            (:mod:`simulations.experiments.reach`).
    """

    place: Mapping[str, str]
    seeds: tuple[str, ...]
    left_out: tuple[str, ...]
    classes: tuple[str, ...]
    judged: Mapping[str, np.ndarray]
    values: Mapping[tuple[str, str, str], np.ndarray]
    ratio: float
    bytes_sent: Mapping[str, float]
    folds: int = 0
    images: Mapping[str, int] = field(default_factory=dict)
    gaps: Mapping[tuple[str, str, str, str], Difference] = field(default_factory=dict)
    drawn_anew: bool = False
    to_reach: Mapping[str, float] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Names, references last."""
        found = dict.fromkeys(method for method, _, _ in self.values)
        return [m for m in found if m not in REFERENCES] + [m for m in REFERENCES if m in found]

    @property
    def places(self) -> list[str]:
        """Mean, worst site, sites."""
        return [MEAN, WORST, *sorted(self.judged)]


def seed_section(place: Mapping[str, str], methods: Mapping[str, Mapping[str, Path]]) -> Section:
    """The section of the cells that share every axis but ``seed`` and ``method``, without folds.

    Args:
        place: value of each other axis.
        methods: method -> seed -> folder of the finished run.

    Raises:
        UsageError: two methods of one seed were not tested on the same images.
        ModelFileError: a finished cell's files are torn.
    """
    everywhere = list(dict.fromkeys(seed for folders in methods.values() for seed in folders))
    seeds = [seed for seed in everywhere if all(seed in folders for folders in methods.values())]
    runs = {
        method: [
            (read_json(folders[s] / "summary.json"), load_tensors(folders[s] / "predictions.safetensors"))
            for s in seeds
        ]
        for method, folders in methods.items()
    }
    first = next(iter(runs.values()))
    classes = tuple(first[0][0]["classes"]) if first else ()
    sites = sorted(first[0][0]["sites"]) if first else []
    check_same_images({method: [t for _, t in found] for method, found in runs.items()}, sites, seeds)
    judged = {site: counting([positives(t, site, len(classes)) for _, t in first], np.sum) for site in sites}
    series: dict[str, list[tuple[str, Predictions]]] = {}
    for method, found in runs.items():
        arms = {name.split("|")[0] for _, t in found for name in t if name.endswith("|probabilities")}
        for arm in sorted(arms):
            # What is compared is each method's federation; the first method that has a reference gives it.
            first_one = arm in REFERENCES and arm not in series
            name = method if arm == "federated" else arm if first_one else f"{method}: {arm}"
            series[name] = [(arm, t) for _, t in found]
    values: dict[tuple[str, str, str], np.ndarray] = {}
    for name, found in series.items():
        table = np.array([[metrics(t, arm, site, judged[site]) for arm, t in found] for site in sites])  # (S, J, 2)
        for position, metric in enumerate(METRICS):
            each = table[:, :, position].reshape(len(sites), -1)
            values |= {(name, site, metric): row for site, row in zip(sites, each, strict=True)}
            values[name, MEAN, metric] = over_sites(each, np.nanmean)
            values[name, WORST, metric] = over_sites(each, np.nanmin)
    trained = [sum(b["n_train"] + b["n_val"] for b in s["sites"].values()) for s, _ in first]
    tested = [sum(b["n_test"] for b in s["sites"].values()) for s, _ in first]
    sent = {method: float(np.mean([s["bytes_sent"] for s, _ in found])) for method, found in runs.items() if found}
    reach = {method: mean_bytes_to_reach(s for s, _ in found) for method, found in runs.items() if found}
    left_out = tuple(seed for seed in everywhere if seed not in seeds)
    ratio = sum(tested) / sum(trained) if trained else math.nan
    return Section(place, tuple(seeds), left_out, classes, judged, values, ratio, sent, to_reach=reach)


def counting(truths: Sequence[np.ndarray], over: Callable[..., Any] = np.min) -> np.ndarray:
    """Positions of the classes that count.

    Args:
        truths: ``(N, C)`` bool of each seed: which tested image has which class.
        over: how the seeds' counts are put together.
    """
    if not truths:
        return np.zeros(0, dtype=np.int64)
    held, lacking = (over([y.sum(axis=0) for y in side], axis=0) for side in (truths, [~y for y in truths]))
    return np.flatnonzero((held >= LEAST_POSITIVES) & (lacking >= LEAST_POSITIVES))


def check_same_images(found: Mapping[str, Sequence[Predictions]], sites: Sequence[str], seeds: Sequence[str]) -> None:
    """Refuse to pair what was tested on different images.

    Args:
        found: method -> predictions of each seed.

    Raises:
        UsageError: a method's test images of a seed are not those of the first one.
    """
    for method, series in found.items():
        for seed, ours, reference in zip(seeds, series, next(iter(found.values())), strict=True):
            for site in sites:
                # Runs of older versions have no keys; labels say less, but not nothing.
                name = next((n for n in (f"{site}|keys", f"{site}|labels") if n in ours or n in reference), "")
                if name not in ours or name not in reference or not _alike(ours[name], reference[name]):
                    raise UsageError(
                        f"method {method}, seed {seed}: at {site} it was tested on other images than the first method",
                        "Methods share dataset and partition; make what differs an axis of its own.",
                    )


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(np.sort(one, axis=0), np.sort(other, axis=0))


def over_sites(each: np.ndarray, how: Callable[..., Any]) -> np.ndarray:
    """``(sites, J)`` to ``(J,)`` over the sites that define a metric; ``nan`` where none does."""
    result = np.full(each.shape[1], np.nan)
    defined = ~np.isnan(each).all(axis=0)
    result[defined] = how(each[:, defined], axis=0)
    return result


def mean_of(values: np.ndarray) -> float:
    """Mean of what is defined; ``nan`` where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def ratio_of_means(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean of the one over mean of the other; ``nan`` where either has none or the other's is 0."""
    below = mean_of(theirs)
    return mean_of(ours) / below if below else math.nan


def positives(tensors: Predictions, site: str, classes: int) -> np.ndarray:
    """``(N, C)`` bool: which test image of a site has which class."""
    labels = tensors[f"{site}|labels"]
    return np.asarray(labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(classes))


def metrics(tensors: Predictions, arm: str, site: str, judged: np.ndarray) -> tuple[float, float]:
    """Balanced accuracy (multi-label: mean of both recalls) and macro AUROC over the classes that count.

    Balanced accuracy is ``nan`` where fewer than two classes count, unless an image may have several labels.
    """
    p, decided = (tensors[f"{arm}|{site}|{what}"] for what in ("probabilities", "decided"))
    truth = positives(tensors, site, p.shape[1])
    hit = decided > 0 if decided.ndim == 2 else decided[:, None] == np.arange(p.shape[1])
    recalls, areas = [], []
    one = np.ones((len(p), 1))
    for c in judged:
        y = truth[:, c]
        if not y.any():
            continue
        recall = float(hit[y, c].mean())
        if decided.ndim == 2 and not y.all():
            recall = (recall + float((~hit[~y, c]).mean())) / 2
        recalls.append(recall)
        areas.append(float(weighted.ranking(p[:, c], y, one)[0][0]))
    defined = [a for a in areas if not math.isnan(a)]
    return (
        float(np.mean(recalls)) if len(recalls) >= (1 if decided.ndim == 2 else 2) else math.nan,
        float(np.mean(defined)) if defined else math.nan,
    )


def difference(ours: np.ndarray, other: np.ndarray, ratio: float) -> Difference | None:
    """Corrected resampled t-test of paired metrics ``(J,)``; none with fewer than two seeds that define both."""
    gaps = ours - other
    gaps = gaps[~np.isnan(gaps)]
    count = len(gaps)
    if count < 2:
        return None
    mean = float(gaps.mean())
    scale = float(gaps.std(ddof=1)) * math.sqrt(1.0 / count + ratio)
    reach = float(stats.t.ppf(0.975, count - 1)) * scale
    if scale == 0.0:
        p = 1.0 if mean == 0.0 else 0.0
    else:
        p = float(2.0 * stats.t.sf(abs(mean) / scale, count - 1))
    return Difference(mean, mean - reach, mean + reach, p, int((gaps > 0).sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[position]))
        adjusted[position] = largest
    return adjusted


def corrected(found: Mapping[K, Difference]) -> dict[K, Difference]:
    """The differences with p-values corrected over all of them (:func:`holm`)."""
    adjusted = holm([gap.p for gap in found.values()])
    return {key: replace(gap, adjusted=p) for (key, gap), p in zip(found.items(), adjusted, strict=True)}


def differences(section: Section, reference: str, metric: str) -> dict[tuple[str, str], Difference]:
    """Every method minus a reference at every place; p-values corrected over all of them."""
    if reference not in section.methods:
        return {}
    found: dict[tuple[str, str], Difference] = {}
    for method in section.methods:
        for place in section.places if method != reference else []:
            if section.folds:
                gap = section.gaps.get((method, reference, place, metric))
            else:
                ours, theirs = (section.values[name, place, metric] for name in (method, reference))
                gap = difference(ours, theirs, section.ratio)
            if gap is not None:
                found[method, place] = gap
    return corrected(found)


def ranks(section: Section, metric: str) -> dict[str, float]:
    """Mean rank of each method over seeds and sites (1 is best; ties share), for the critical difference."""
    sites = sorted(section.judged)
    rows = np.array([[section.values[m, s, metric] for s in sites] for m in section.methods])
    blocks = rows.reshape(len(section.methods), -1)
    blocks = blocks[:, ~np.isnan(blocks).any(axis=0)]
    if not blocks.shape[1]:
        return {}
    return dict(zip(section.methods, stats.rankdata(-blocks, axis=0).mean(axis=1).tolist(), strict=True))


def critical_difference(methods: int, blocks: int) -> float:
    """Nemenyi's critical difference of mean ranks at 0.05 (Demsar 2006, section 3.2.2)."""
    q = float(stats.studentized_range.ppf(0.95, methods, np.inf)) / math.sqrt(2.0)
    return q * math.sqrt(methods * (methods + 1) / (6.0 * blocks))


def verdicts(section: Section, metric: str) -> dict[str, Any]:
    """Issue-style targets: above local at every site, mean over pooled, worst site over pooled's worst."""
    result: dict[str, Any] = {}
    against = differences(section, "local", metric)
    for method in section.methods:
        if method in REFERENCES:
            continue
        entry: dict[str, Any] = {}
        if against:
            found = {site: against.get((method, site)) for site in sorted(section.judged)}
            entry["above_local_at"] = [site for site, gap in found.items() if gap and gap.verdict == "above"]
        for name, place in (("mean_over_pooled", MEAN), ("worst_over_pooled", WORST)):
            if "pooled" in section.methods:
                ours, pooled = section.values[method, place, metric], section.values["pooled", place, metric]
                entry[name] = ratio_of_means(ours, pooled)
        result[method] = entry
    return result
