"""Prediction sets: the classes that an image may have, of which the right one is among them as often as promised.

Split conformal prediction (Vovk et al. 2005, section 2; Lei et al. 2018) on counts that sites add. Each validation
image has a **non-conformity score** for its true class, from 0 (as expected) to 1:

- ``lac``: one minus the probability of the class (Sadinle et al. 2019), the smallest sets on average;
- ``aps``: the sum of the probabilities of all classes at least as probable (Romano et al. 2020, without their random
  number), sets that grow where an image is difficult.

A score is seen through a fixed grid alone: the number of its **cell**, ``ceil(score * CELLS)``. Sites count how many of
their validation images lie in each cell; the coordinator adds the counts and takes as threshold the cell of rank
``ceil((n + 1) * level)`` among the ``n`` of all sites. A set holds every class whose score's cell is not above it. The
cell number is itself a non-conformity score, so coverage is at least ``level`` **whatever the grid**, and no score
leaves a site. Where ``(n + 1) * level > n`` there is no such rank: the set then holds all classes.

What is promised holds on average over images like those of **all sites together** in the shares in which they counted
(Lu et al. 2023, arXiv 2305.17564, section 4), not at each site: a site may have thresholds of its own from its own
images. It rests on exchangeable images and on scores that were fixed before: several images of one patient, and a model
whose round and calibration were chosen on the same validation images, bend it a little (docs/metrics.md).

Multi-label: each label is a question of its own with the states absent and present, and the promise is one for each
label, not for all at once. ``aps`` is for one class among several only.

Counts have the shape ``(Q, S + 1, CELLS + 1)``: ``Q`` questions (1; multi-label: the labels), ``S`` states of each (the
classes; multi-label: absent, present), and last the images whose state a site does not tell, because it has too few of
that state. ``N`` images, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

CELLS = 200
LEVELS = (0.8, 0.9, 0.95, 0.99)
USUAL = 0.9
METHODS = ("lac", "aps")


def methods(task: str) -> tuple[str, ...]:
    """The methods that a task has."""
    return ("lac",) if task == "multilabel" else METHODS


def shape(task: str, classes: int) -> tuple[int, int, int]:
    """``(Q, S + 1, CELLS + 1)`` of the counts of a task with ``C`` classes."""
    return (classes, 3, CELLS + 1) if task == "multilabel" else (1, classes + 1, CELLS + 1)


def cells(scores: np.ndarray) -> np.ndarray:
    """The number of each score's cell, 0 to :data:`CELLS`: rounded up, so that an edge belongs to what lies below it.

    Raises:
        ValueError: a score that is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("non-conformity scores are not finite: the model has diverged")
    return np.clip(np.ceil(scores * CELLS), 0, CELLS).astype(np.int64)


def scores(probabilities: np.ndarray, task: str, method: str) -> np.ndarray:
    """Non-conformity of each state that an image may have, ``(N, Q, S)``.

    Args:
        probabilities: ``(N, C)``, calibrated.

    Raises:
        ValueError: the task has no such method.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if method not in methods(task):
        raise ValueError(f"method {method!r} is not one of {', '.join(methods(task))} for {task}")
    if task == "multilabel":
        return np.stack([p, 1 - p], axis=2)
    if method == "lac":
        return (1 - p)[:, None, :]
    columns = [(p * (p >= p[:, c : c + 1])).sum(axis=1) for c in range(p.shape[1])]
    return np.stack(columns, axis=1)[:, None, :] if columns else p[:, None, :]


def counts(probabilities: np.ndarray, labels: np.ndarray, task: str, method: str) -> np.ndarray:
    """A site's half: how many images of each state lie in each cell, ``(Q, S + 1, CELLS + 1)`` int64.

    Args:
        probabilities: ``(N, C)`` of images that the model was not trained on.
        labels: ``(N,)`` class index; multilabel ``(N, C)`` 0/1.
    """
    found = cells(scores(probabilities, task, method))
    states = true_states(labels, task)
    table = np.zeros(shape(task, np.asarray(probabilities).shape[1]), dtype=np.int64)
    for question in range(table.shape[0]):
        own = np.take_along_axis(found[:, question], states[:, question, None], axis=1)[:, 0]
        np.add.at(table[question], (states[:, question], own), 1)
    return table


def true_states(labels: np.ndarray, task: str) -> np.ndarray:
    """Which state of each question is the true one, ``(N, Q)`` int64."""
    labels = np.asarray(labels)
    return (labels > 0).astype(np.int64) if task == "multilabel" else labels.astype(np.int64)[:, None]


def threshold(row: np.ndarray, level: float) -> int:
    """The cell of rank ``ceil((n + 1) * level)`` among ``n`` counted images; :data:`CELLS`, all classes, where ``n`` is
    too small for one.

    Args:
        row: ``(CELLS + 1,)`` counts.
        level: what is promised, inside (0, 1).
    """
    rank = rank_of(int(row.sum()), level)
    return CELLS if rank is None else int(np.searchsorted(np.cumsum(row), rank))


def rank_of(n: int, level: float) -> int | None:
    """``ceil((n + 1) * level)``, computed without rounding; none where that is more than ``n``."""
    rank = math.ceil((n + 1) * Fraction(str(level)))
    return rank if rank <= n else None


@dataclass(frozen=True)
class Rule:
    """The thresholds of one method at one level.

    Attributes:
        method: a name of :data:`METHODS`.
        level: share of images whose true class the sets promise to hold.
        overall: ``(Q,)`` cells: the promise is one over all images.
        by_state: ``(Q, S)`` cells: the promise is one for the images of each class (multi-label: of each state of a
            label); :data:`CELLS` where a class has too few images, which is then in every set.
    """

    method: str
    level: float
    overall: tuple[int, ...]
    by_state: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, and :meth:`from_json` reads."""
        return {
            "method": self.method,
            "level": self.level,
            "overall": list(self.overall),
            "by_state": [list(row) for row in self.by_state],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], task: str, classes: int) -> Rule:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: another method, level, shape, or a cell that is not on the grid.
        """
        questions, states, _ = shape(task, classes)
        if set(value) != {"method", "level", "overall", "by_state"}:
            raise ValueError("a rule holds exactly the keys method, level, overall, by_state")
        overall, by_state = value["overall"], value["by_state"]
        whole = isinstance(overall, list) and isinstance(by_state, list) and len(overall) == len(by_state) == questions
        rows = whole and all(isinstance(row, list) and len(row) == states - 1 for row in by_state)
        numbers = [*overall, *(cell for row in by_state for cell in row)] if rows else [None]
        level = value["level"]
        known = value["method"] in methods(task) and isinstance(level, float) and 0 < level < 1
        if not known or not all(type(cell) is int and 0 <= cell <= CELLS for cell in numbers):
            raise ValueError("a rule's method, level or thresholds are not some of this task")
        return cls(value["method"], level, tuple(overall), tuple(tuple(row) for row in by_state))


def fit(tables: Sequence[np.ndarray], method: str, level: float, *, guarded: bool = False) -> Rule:
    """The coordinator's half: thresholds from the sites' counts.

    Args:
        tables: of each site, ``(Q, S + 1, CELLS + 1)``.
        guarded: whether one site is to be withstood. Each threshold is then the largest over all choices of leaving
            one site out: a site that counts too little makes no set smaller than the others' images ask for.

    Raises:
        ValueError: there is no table.
    """
    if not tables:
        raise ValueError("there are no counts to take thresholds from")
    total = np.sum(tables, axis=0)
    some = [total - table for table in tables] if guarded and len(tables) > 1 else []
    overall = [max(threshold(t[q].sum(axis=0), level) for t in (total, *some)) for q in range(total.shape[0])]
    by_state = [
        tuple(max(threshold(t[q, s], level) for t in (total, *some)) for s in range(total.shape[1] - 1))
        for q in range(total.shape[0])
    ]
    return Rule(method, level, tuple(overall), tuple(by_state))


def members(probabilities: np.ndarray, task: str, rule: Rule, *, by_state: bool = False) -> np.ndarray:
    """Which states each set holds, ``(N, Q, S)`` bool; a set may be empty: no class is as probable as usual.

    Args:
        probabilities: ``(N, C)``, calibrated.
        by_state: by the thresholds of each class.
    """
    found = cells(scores(probabilities, task, rule.method))
    limits = np.array(rule.by_state)[None] if by_state else np.array(rule.overall)[None, :, None]
    return np.asarray(found <= limits)


def covered(sets: np.ndarray, labels: np.ndarray, task: str) -> np.ndarray:
    """Whether each set holds the true state, ``(N, Q)`` bool.

    Args:
        sets: ``(N, Q, S)`` of :func:`members`.
        labels: ``(N,)`` class index; multilabel ``(N, C)`` 0/1.
    """
    return np.asarray(np.take_along_axis(sets, true_states(labels, task)[:, :, None], axis=2)[:, :, 0])
