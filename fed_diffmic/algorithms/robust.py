"""What the aggregations that withstand false updates share: no site's number enters unchecked, not even a counter's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fed_diffmic.algorithms.base import SiteUpdate, Tensors


def stacked(updates: Sequence[SiteUpdate], name: str) -> np.ndarray:
    """``(K, ...)`` values of one tensor in the order of site names; floats in float64."""
    values = np.stack([u.tensors[name] for u in sorted(updates, key=lambda u: u.site)])
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def middle(values: np.ndarray) -> np.ndarray:
    """Lower median over the first axis: one of the values, so a counter stays whole."""
    return np.asarray(np.sort(values, axis=0)[(len(values) - 1) // 2])


def coordinatewise(
    current: Tensors, kinds: Mapping[str, str], updates: Sequence[SiteUpdate], how: str, trim: int = 0
) -> Tensors:
    """``median`` or ``mean`` (after ``trim`` values at each end are left out) of every coordinate of every float."""
    result: Tensors = {}
    for name, kind in kinds.items():
        values = stacked(updates, name)
        if kind == "counter":
            result[name] = middle(values)
        elif how == "median":
            result[name] = np.asarray(np.median(values, axis=0).astype(current[name].dtype))
        else:
            kept = np.sort(values, axis=0)[trim : len(values) - trim]
            result[name] = np.asarray(kept.mean(axis=0).astype(current[name].dtype))
    return result
