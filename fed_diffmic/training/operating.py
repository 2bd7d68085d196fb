"""Operating points of each class against the rest: what is found at a given share of false alarms, and the reverse.

A threshold is one of a class's calibrated probability. It is taken from the very images on which the point is measured,
as in every published ROC curve, so a threshold that is chosen beforehand does a little worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import weighted
from fed_diffmic.training.matrix import AT_ONCE, POINTS, operating_points, positive_of
from fed_diffmic.training.metrics import Scored, group_index, interval, number


def class_points(scored: Scored, classes: Sequence[str], *, bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """Operating points of each class.

    Args:
        scored: predictions on test images.
        classes: names.
        bootstrap: resamples of groups; 0: no intervals.
        seed: of the resamples.

    Returns:
        class -> ``n`` images, ``positives``, and each of :data:`fed_diffmic.training.matrix.POINTS` as ``{value, low,
        high}``; the value is none where positives or negatives are missing.
    """
    found: dict[str, dict[str, Any]] = {}
    n = len(scored.labels)
    groups = group_index(scored.groups) if n else np.zeros(0, np.int64)
    for c, name in enumerate(classes):
        scores, positive = scored.probabilities[:, c], positive_of(scored, c)
        rng = numpy_generator(seed, "bootstrap", name)
        point = operating_points(scores, positive, np.ones((n, 1)))
        parts = [np.empty((len(POINTS), 0))]
        for start in range(0, bootstrap if n and groups.max() > 0 else 0, AT_ONCE):
            weights = weighted.resample_weights(groups, min(AT_ONCE, bootstrap - start), rng)
            parts.append(operating_points(scores, positive, weights))
        drawn = np.concatenate(parts, axis=1)
        cell: dict[str, Any] = {"n": n, "positives": int(positive.sum())}
        for at, key in enumerate(POINTS):
            low, high = interval(drawn[at])
            cell[key] = {"value": number(float(point[at][0])), "low": low, "high": high}
        found[name] = cell
    return found
