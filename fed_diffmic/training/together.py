"""Figures over the test images of several sites together, from counts that they add up: nobody sees one site's.

A site counts, for each class, its images with and without the class in each cell of the calibrated probability
(:mod:`fed_diffmic.training.pooled`), those that are rightly called it and rightly not, and for each bin of the
calibration error how many probabilities lie in it, how many of them are right, and their sum. The totals of counts are
exact. They give accuracy, balanced accuracy and calibration error as the images themselves would (the latter to within
the quanta of its sums), operating points as a threshold at an edge of a cell reaches them, and the AUROC with images of
one cell tied (half a pair each). How images of one patient lie in the counts nobody knows: there are no intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fed_diffmic.training import weighted
from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY, METRICS, TEST, operating_points, positive_of
from fed_diffmic.training.metrics import Scored, number
from fed_diffmic.training.pooled import CELLS, PREFIX, WITH, WITHOUT, cells_of

IMAGES = "num_examples"
_SIDES = (WITHOUT, WITH)


def count_names(classes: int) -> tuple[str, ...]:
    """Of whole numbers that a site adds."""
    cells = [f"cell/{c}/{side}/{cell}" for c in range(classes) for side in _SIDES for cell in range(CELLS)]
    calls = [f"{what}/{c}" for what in ("called", "cleared") for c in range(classes)]
    return *cells, *calls, *(f"bin/{b}/{what}" for b in range(weighted.ECE_BINS) for what in ("n", "right"))


def sum_names() -> tuple[str, ...]:
    """Of sums of probabilities that a site adds."""
    return tuple(f"bin/{b}/p" for b in range(weighted.ECE_BINS))


def policy_names(classes: int) -> tuple[str, ...]:
    """What these are to a site's policy: every metric of test images by itself that they give together."""
    points = [f"{PREFIX}{c}/{side}/{cell}" for c in range(classes) for side in _SIDES for cell in range(CELLS)]
    own = ["n", *(f"positives/{c}" for c in range(classes)), *METRICS, AT_SPECIFICITY, AT_SENSITIVITY]
    return *(TEST + name for name in own), *points


def site_sums(scored: Scored) -> dict[str, float]:
    """A site's half: :data:`IMAGES`, and everything that :func:`count_names` and :func:`sum_names` name."""
    classes = scored.probabilities.shape[1]
    found = dict.fromkeys((*count_names(classes), *sum_names()), 0.0) | {IMAGES: float(len(scored.labels))}
    for c in range(classes):
        positive, cells = positive_of(scored, c), cells_of(scored.probabilities[:, c])
        called = scored.decided[:, c] if scored.task == "multilabel" else scored.decided == c
        found[f"called/{c}"] = float((called & positive).sum())
        found[f"cleared/{c}"] = float((~called & ~positive).sum())
        for side, rows in ((WITHOUT, ~positive), (WITH, positive)):
            for cell, count in zip(*np.unique(cells[rows], return_counts=True), strict=True):
                found[f"cell/{c}/{side}/{cell}"] = float(count)
    confidence, right = (array.ravel() for array in scored.confidence)
    bins = weighted.bin_of(confidence)
    for b in np.unique(bins):
        held = bins == b
        found[f"bin/{b}/n"], found[f"bin/{b}/right"] = float(held.sum()), float(right[held].sum())
        found[f"bin/{b}/p"] = float(confidence[held].sum())
    return found


def together(said: Mapping[str, float], classes: Sequence[str], task: str) -> dict[str, Any]:
    """Figures over all images that were counted.

    Args:
        said: the totals, by the names of :func:`site_sums`.
        classes: names.
        task: multiclass, ordinal or multilabel.

    Returns:
        ``n``, ``accuracy``, each of :data:`fed_diffmic.training.matrix.METRICS` (macro over the classes present), and
        ``per_class``: name -> ``positives``, ``auroc`` and both operating points. What is not defined is none.

    Raises:
        ValueError: no sites can have counted so.
    """
    images = said[IMAGES]
    sides = np.array([[[said[f"cell/{c}/{side}/{cell}"] for cell in range(CELLS)] for side in _SIDES]
                      for c in range(len(classes))])  # fmt: skip
    held, labels = sides.sum(axis=2), len(classes) if task == "multilabel" else 1
    calls = np.array([[said[f"called/{c}"], said[f"cleared/{c}"]] for c in range(len(classes))])
    bins = np.array([[said[f"bin/{b}/{what}"] for what in ("n", "right", "p")] for b in range(weighted.ECE_BINS)])
    whole = (
        (held.sum(axis=1) == images).all() and (calls <= held[:, ::-1]).all() and bins[:, 0].sum() == labels * images
    )
    if not whole or (task != "multilabel" and held[:, 1].sum() != images) or (bins[:, 1] > bins[:, 0]).any():
        raise ValueError("counts of test images do not add up")
    rates = weighted.divide(calls, held[:, ::-1])  # sensitivity, specificity
    recall = rates.mean(axis=1) if task == "multilabel" else rates[:, 0]
    right = calls.sum() / (images * labels) if task == "multilabel" else calls[:, 0].sum() / images
    gaps = np.abs(bins[:, 2] - bins[:, 1]).sum() / (images * labels)
    per_class = {name: _of_class(sides[c]) for c, name in enumerate(classes)}
    aurocs = np.array([[np.nan if cell["auroc"] is None else cell["auroc"] for cell in per_class.values()]])
    macro = {"balanced_accuracy": recall[None], "auroc_macro": aurocs}
    return {
        "n": int(images),
        "accuracy": number(float(right)),
        **{name: number(float(weighted.mean_of_defined(value)[0])) for name, value in macro.items()},
        "ece": number(float(gaps)),
        "per_class": per_class,
    }


def _of_class(sides: np.ndarray) -> dict[str, Any]:
    """Of counts ``(2, CELLS)`` of the images without a class and with it."""
    scores, positive = np.tile(np.arange(CELLS, dtype=np.float64), 2), np.repeat([False, True], CELLS)
    counts = sides.reshape(-1, 1)
    ranked, _ = weighted.ranking(scores[counts[:, 0] > 0], positive[counts[:, 0] > 0], counts[counts[:, 0] > 0])
    points = operating_points(scores, positive, counts)[:, 0]
    values = {"auroc": ranked[0], AT_SPECIFICITY: points[0], AT_SENSITIVITY: points[1]}
    return {"positives": int(sides[1].sum()), **{name: number(float(value)) for name, value in values.items()}}
