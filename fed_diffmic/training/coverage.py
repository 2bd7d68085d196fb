"""How often prediction sets held the right class on images that no threshold was taken from, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fed_diffmic.training import binomial, conformal
from fed_diffmic.training.conformal import USUAL
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.sureness import Sureness

BOUNDS = ("value", "low", "high")
BY_CLASS = "-by-class"
KINDS = tuple(method + kind for method in conformal.METHODS for kind in ("", BY_CLASS))
"""Kinds of prediction sets: of each method those promised over all images, and those promised for each class."""


def coverage(scored: Scored, sureness: Sureness, classes: Sequence[str], level: float = USUAL) -> dict[str, Any]:
    """Coverage of each kind of sets at a level, over all images and for each class; empty where there are no sets.

    Args:
        scored: predictions on test images.
        classes: names.

    Returns:
        kind (:data:`KINDS`) -> ``level``; ``value``, ``low`` and ``high``, its exact 95 % interval widened for images
        of one patient; ``size``, the mean number of classes in a set (multi-label: of states, 1 where it says one);
        and ``classes``, name -> ``value``, ``low``, ``high`` over the images of that class (multi-label: over all
        images, of that label's question). Of several labels ``value`` is the mean over them.
    """
    found = {}
    for kind in KINDS:
        method = kind.removesuffix(BY_CLASS)
        rule = sureness.rule(method, level)
        if rule is None or not len(scored.labels):
            continue
        sets = conformal.members(scored.probabilities, scored.task, rule, by_state=kind != method)
        hits = conformal.covered(sets, scored.labels, scored.task)
        several = scored.task == "multilabel"
        cells = {}
        for c, name in enumerate(classes):
            some = np.ones(len(hits), dtype=bool) if several else scored.labels == c
            own = hits[some, c] if several else hits[some, 0]
            cells[name] = dict(zip(BOUNDS, binomial.share(own, scored.groups[some]), strict=True))
        whole: dict[str, Any] = dict(zip(BOUNDS, _overall(hits, scored.groups), strict=True))
        size = float(sets.sum(axis=2).mean())
        found[kind] = {"level": level, **whole, "size": size, "classes": cells}
    return found


def _overall(hits: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Mean over the questions, and the interval as if each image were one question's."""
    value, effect = float(hits.mean()), binomial.design_effect(groups)
    return value, *binomial.clopper_pearson(value * len(hits) / effect, len(hits) / effect)


def coverage_metrics(found: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
    """As flat numbers, in which form it can leave a site: ``coverage/KIND/KEY``, ``class_coverage/KIND/C/KEY``."""
    flat: dict[str, float | None] = {}
    for kind, cell in found.items():
        flat |= {f"coverage/{kind}/{key}": cell[key] for key in (*BOUNDS, "level", "size")}
        for index, name in enumerate(classes):
            flat |= {f"class_coverage/{kind}/{index}/{key}": cell["classes"][name][key] for key in BOUNDS}
    return {name: float(value) for name, value in flat.items() if value is not None}


def coverage_from(metrics: Mapping[str, float], classes: Sequence[str]) -> dict[str, Any]:
    """What a site's flat numbers, without the prefix of test metrics, describe; what did not come is none."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        if f"coverage/{kind}/value" not in metrics:
            continue
        cells = {
            name: {key: metrics.get(f"class_coverage/{kind}/{index}/{key}") for key in BOUNDS}
            for index, name in enumerate(classes)
        }
        whole = {key: metrics.get(f"coverage/{kind}/{key}") for key in (*BOUNDS, "level", "size")}
        found[kind] = {**whole, "classes": cells}
    return found


def names(classes: int) -> dict[str, tuple[float, float]]:
    """Every flat name that a site may send, with its range."""
    found: dict[str, tuple[float, float]] = {}
    for kind in KINDS:
        found |= {f"coverage/{kind}/{key}": (0.0, 1.0) for key in (*BOUNDS, "level")}
        found[f"coverage/{kind}/size"] = (0.0, float(max(2, classes)))
        found |= {f"class_coverage/{kind}/{c}/{key}": (0.0, 1.0) for c in range(classes) for key in BOUNDS}
    return found
