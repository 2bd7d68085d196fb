"""How sure a finished model is: what sites count of their validation images, and what is kept with the model.

A site's half is :func:`site_counts`, the coordinator's :func:`fit`; between them only the counts of
:mod:`fed_diffmic.training.conformal` and :mod:`fed_diffmic.training.uncertainty` travel, as flat numbers:

===================================  ================================================================
``num_examples``                     validation images
``sets/squares``                     sum of the squared numbers of images of each patient
``sets/METHOD/QUESTION/STATE/CELL``  images of that state in that cell; ``rest``: of states not told
``unsure/MEASURE/WRONG/CELL``        right (0) and wrong (1) predictions in that cell
``owners/`` and all but the cell     patients behind these; stays at the site
===================================  ================================================================

A number that does not come is 0. What a site's policy does to them on the way: :mod:`fed_diffmic.training.few`. Where
nobody sees the counts of one site, the sites add up all that :func:`count_names` names, and :func:`fit_sum` is the
coordinator's half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ModelFileError
from fed_diffmic.training import conformal, uncertainty
from fed_diffmic.training.calibration import Calibration, decide, probabilities
from fed_diffmic.training.conformal import CELLS, LEVELS, Rule
from fed_diffmic.training.few import OWNERS
from fed_diffmic.training.uncertainty import MEASURES, RIGHT, WRONG, Measured

IMAGES, SQUARES, SETS, UNSURE, REST = "num_examples", "sets/squares", "sets/", "unsure/", "rest"
_KEYS = ("task", "classes", "n", "sites", "silent", "rules", "measures")


@dataclass(frozen=True)
class Sureness:
    """What is known of how sure a stage's model is.

    Attributes:
        task: multiclass, ordinal or multilabel.
        classes: ``C``.
        n: validation images that it rests on; 0: no site told anything, there are no rules and no measures.
        sites: names of the sites whose images these are: sets are promised for images like theirs together.
        silent: names of the sites that told nothing: of their images nothing is promised.
        rules: thresholds of prediction sets, by method and level.
        measures: the test of each measure of uncertainty.
    """

    task: str
    classes: int
    n: int = 0
    sites: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    measures: tuple[Measured, ...] = ()

    def rule(self, method: str, level: float) -> Rule | None:
        """The thresholds of a method at a level, or none."""
        return next((rule for rule in self.rules if (rule.method, rule.level) == (method, level)), None)

    @property
    def offered(self) -> tuple[Measured, ...]:
        """The measures that were shown to rank errors above chance, the best first."""
        return tuple(sorted((m for m in self.measures if m.offered), key=lambda m: -(m.low or 0)))

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, and :meth:`from_json` reads."""
        return {
            **{name: getattr(self, name) for name in ("task", "classes", "n")},
            "sites": list(self.sites),
            "silent": list(self.silent),
            "rules": [rule.to_json() for rule in self.rules],
            "measures": [measure.to_json() for measure in self.measures],
        }

    @classmethod
    def from_json(cls, value: object) -> Sureness:
        """Read what :meth:`to_json` wrote.

        Raises:
            ModelFileError: a key missing or unknown, a value of another type or out of range.
        """
        try:
            return cls._read(value)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelFileError(f"what is known of the model's uncertainty cannot be read: {error}") from error

    @classmethod
    def _read(cls, value: object) -> Sureness:
        if not isinstance(value, Mapping) or sorted(value) != sorted(_KEYS):
            raise ValueError(f"it holds exactly the keys {', '.join(_KEYS)}")
        task, classes, n = value["task"], value["classes"], value["n"]
        names = [*value["sites"], *value["silent"]]
        if not all(type(number) is int and number >= 0 for number in (classes, n)) or not isinstance(task, str):
            raise ValueError("numbers of images and classes are whole")
        if not all(isinstance(name, str) for name in names):
            raise ValueError("sites have names")
        rules = tuple(Rule.from_json(rule, task, classes) for rule in value["rules"])
        measures = tuple(Measured.from_json(measure) for measure in value["measures"])
        return cls(task, classes, n, tuple(value["sites"]), tuple(value["silent"]), rules, measures)


def unsure_of(
    scores: np.ndarray, others: Mapping[str, np.ndarray], fitted: Calibration
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Calibrated probabilities ``(N, C)``, and each measure of uncertainty ``(N,)`` that there is.

    Args:
        scores: ``(N, C)``, or ``(N, 2, C)``.
        others: what the model itself says of its doubts (:func:`fed_diffmic.training.opinions.doubts`).
    """
    found = probabilities(scores, fitted)
    return found, {"entropy": uncertainty.entropy(found, fitted.task), **others}


def site_counts(
    scores: np.ndarray,
    others: Mapping[str, np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    fitted: Calibration,
    spec: RunSpec,
) -> dict[str, float]:
    """A site's half: counts of its validation images, as flat numbers; what is 0 is left out.

    By :data:`fed_diffmic.training.few.OWNERS` it is judged here what of them may leave.

    Args:
        scores, others: as of :func:`unsure_of`.
        labels: ``(N,)`` class index; multilabel ``(N, C)`` 0/1.
        groups: ``(N,)`` patient of each image.

    Raises:
        ValueError: scores that are not finite.
    """
    metrics: dict[str, float] = {IMAGES: float(len(labels))}
    if not len(labels):
        return metrics
    metrics[SQUARES] = float((np.unique(groups, return_counts=True)[1].astype(np.float64) ** 2).sum())
    found, measures = unsure_of(scores, others, fitted)
    truth = conformal.true_states(labels, spec.task)
    for method in conformal.methods(spec.task):
        table = conformal.counts(found, labels, spec.task, method)
        for question, state, cell in np.argwhere(table):
            metrics[f"{SETS}{method}/{question}/{state}/{cell}"] = float(table[question, state, cell])
        for question, state in np.argwhere(table.any(axis=2)):
            owners = groups[truth[:, question] == state]
            metrics[f"{OWNERS}{SETS}{method}/{question}/{state}"] = float(len(np.unique(owners)))
    bad = uncertainty.wrong(decide(found, fitted, spec.stages.decision), labels, spec.task)
    for measure, values in measures.items():
        for kind, rows in ((RIGHT, ~bad), (WRONG, bad)):
            for cell, count in zip(*np.unique(conformal.cells(values[rows]), return_counts=True), strict=True):
                metrics[f"{UNSURE}{measure}/{kind}/{cell}"] = float(count)
            if rows.any():
                metrics[f"{OWNERS}{UNSURE}{measure}/{kind}"] = float(len(np.unique(groups[rows])))
    return metrics


def count_names(task: str, classes: int) -> tuple[str, ...]:
    """Every number that sites may count beside :data:`IMAGES`, whatever the model: what does not come is 0."""
    questions, states, cells = conformal.shape(task, classes)
    named = [*map(str, range(states - 1)), REST]
    places = [f"{q}/{state}/{cell}" for q in range(questions) for state in named for cell in range(cells)]
    sets = [f"{SETS}{method}/{place}" for method in conformal.methods(task) for place in places]
    kinds = [f"{kind}/{cell}" for kind in (RIGHT, WRONG) for cell in range(CELLS + 1)]
    return SQUARES, *sets, *(f"{UNSURE}{measure}/{place}" for measure in MEASURES for place in kinds)


@dataclass(frozen=True, eq=False)
class Counts:
    """What one site counted.

    Attributes:
        n: validation images.
        squares: sum of the squared numbers of images of each patient.
        sets: by method ``(Q, S + 1, CELLS + 1)``.
        unsure: by measure ``(2, CELLS + 1)``.
    """

    n: int
    squares: float
    sets: Mapping[str, np.ndarray]
    unsure: Mapping[str, np.ndarray]


def counts_from(metrics: Mapping[str, float], task: str, classes: int) -> Counts | None:
    """The counts that a site's flat numbers describe; none if they cannot be counts of its validation images.

    Every method and question must count each image once, and no measure more images than there are.
    """
    n, size = metrics.get(IMAGES, 0.0), conformal.shape(task, classes)
    sets = {method: np.zeros(size, dtype=np.int64) for method in conformal.methods(task)}
    unsure = {measure: np.zeros((2, CELLS + 1), dtype=np.int64) for measure in MEASURES}
    tables = {SETS + name: table for name, table in sets.items()} | {UNSURE + name: t for name, t in unsure.items()}
    for name, value in metrics.items():
        if name not in (IMAGES, SQUARES):
            table, _, place = name.partition("/")
            method, _, place = place.partition("/")
            counted = tables.get(f"{table}/{method}")
            at = None if counted is None else _place(place, counted.shape)
            if counted is None or at is None or value < 0 or value != int(value):
                return None
            counted[at] += int(value)
    squares = metrics.get(SQUARES, n**2)
    whole = all((table.sum(axis=(1, 2)) == n).all() for table in sets.values())
    if not whole or any(table.sum() > n for table in unsure.values()) or not n <= squares <= n**2:
        return None
    return Counts(int(n), squares, sets, {name: table for name, table in unsure.items() if table.any()})


def _place(text: str, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """The place in a table of counts that a name tells, or none."""
    parts = [str(size[1] - 1) if part == REST and len(size) == 3 else part for part in text.split("/")]
    if len(parts) != len(size) or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        return None
    at = tuple(map(int, parts))
    return at if all(place < most for place, most in zip(at, size, strict=True)) else None


def fit(counts: Mapping[str, Counts], silent: Sequence[str], task: str, classes: int, *, guarded: bool) -> Sureness:
    """The coordinator's half.

    Args:
        counts: by site, each of at least one image.
        silent: names of the other sites.
        guarded: whether one site is to be withstood: thresholds are then the largest, and the test of a measure the
            worst, over all choices of leaving one site out; what one site alone says counts for nothing.
    """
    nothing = Sureness(task, classes, silent=tuple(sorted([*silent, *counts])))
    if not counts or (guarded and len(counts) < 2):
        return nothing
    sites = [counts[name] for name in sorted(counts)]
    rules = tuple(
        conformal.fit([site.sets[method] for site in sites], method, level, guarded=guarded)
        for method in conformal.methods(task)
        for level in LEVELS
    )
    without = [sites, *([[*sites[:k], *sites[k + 1 :]] for k in range(len(sites))] if guarded else [])]
    measures = []
    for name in MEASURES:
        tests = [_measured(name, some) for some in without if any(name in site.unsure for site in some)]
        if tests:
            measures.append(min(tests, key=lambda test: test.low or 0.0))
    n = sum(site.n for site in sites)
    return Sureness(task, classes, n, tuple(sorted(counts)), tuple(sorted(silent)), rules, tuple(measures))


def fit_sum(
    said: Mapping[str, float], among: Sequence[str], silent: Sequence[str], task: str, classes: int
) -> Sureness:
    """The coordinator's half where sums over several sites are all that it sees.

    No site can be left out of a sum, so none is withstood.

    Args:
        said: the totals, by name.
        among: names of the sites in them.
        silent: names of the other sites.

    Raises:
        ValueError: no sites can have counted so.
    """
    total = counts_from(said, task, classes)
    if total is None or not total.n or any(table.sum() != total.n for table in total.unsure.values()):
        raise ValueError("counts of validation images do not add up")
    found = fit({"": total}, silent, task, classes, guarded=False)
    return replace(found, sites=tuple(sorted(among)))


def _measured(name: str, sites: Sequence[Counts]) -> Measured:
    told = [site for site in sites if name in site.unsure]
    effect = sum(site.squares for site in told) / max(1, sum(site.n for site in told))
    return uncertainty.measured(name, np.sum([site.unsure[name] for site in told], axis=0), effect)
