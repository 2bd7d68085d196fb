"""The class prior of a consortium, from what its sites say of their training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fed_diffmic.algorithms.shares import capped
from fed_diffmic.training.calibration import class_prior


def consortium_prior(counts: Mapping[str, Mapping[str, Any]], task: str, max_share: float = 1.0) -> np.ndarray:
    """Class prior ``(C,)`` over all sites' training images, as they said at the start of the run.

    A site counts for its images, at most for ``max_share`` of all, and its classes for no more images than it has: one
    site that claims whatever it likes moves the prior by no more than that share (in total variation). Counts that
    a site keeps back are not zeros: of a multi-class site that keeps some back, what its images leave over is spread
    evenly over those classes, and one that keeps all of them back says nothing of the prior; multi-label, a class is
    judged by the sites that say its number.

    Args:
        counts: by site: ``train``, its training images, and ``classes``, those of each class (none: kept back).
        task: multiclass, ordinal or multilabel.
        max_share: see :mod:`fed_diffmic.algorithms.shares`.
    """
    names = sorted(counts)
    said = {name: float(counts[name]["train"]) for name in names}
    weights = capped(said, max_share)
    rows, images = [], []
    for name in names:
        row = known_classes(counts[name]["classes"], counts[name]["train"], task)
        factor = weights[name] / said[name]  # exactly 1 where nothing was cut
        rows.append(row * factor)
        images.append(np.where(np.isnan(row), 0.0, weights[name]))
    return class_prior(np.nansum(np.array(rows), axis=0), np.sum(np.array(images), axis=0), task)


def known_classes(classes: Sequence[int | None], images: int, task: str) -> np.ndarray:
    """A site's images of each class, ``(C,)``; not a number: nothing is known.

    No more than its images: a class of a multi-label site, the sum of them otherwise (noised counts may exceed it).
    """
    row = np.array([np.nan if count is None else float(count) for count in classes])
    if task == "multilabel":
        return np.asarray(np.minimum(row, images))
    total, hidden = float(np.nansum(row)), np.isnan(row)
    if total > images:
        row = row * (images / total)
    if hidden.any() and not hidden.all():
        row[hidden] = max(0.0, images - total) / int(hidden.sum())
    return row
