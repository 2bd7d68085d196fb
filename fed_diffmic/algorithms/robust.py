"""What the aggregations that withstand false updates share: no site's number enters unchecked, not even a counter's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fed_diffmic.algorithms.base import SiteUpdate, Tensors

BLOCK = 2**16
"""Coordinates that are looked at together."""


def middle(values: np.ndarray) -> np.ndarray:
    """Lower median over the first axis: one of the values, so a counter stays whole."""
    return np.asarray(np.sort(values, axis=0)[(len(values) - 1) // 2])


def pieces(tensors: Sequence[np.ndarray]) -> Iterator[tuple[slice, np.ndarray]]:
    """``(K, up to BLOCK)`` values of ``K`` tensors of one shape, with where they lie in it; floats in float64.

    The tensors may lie in files: no more of them is in memory at a time.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].size, BLOCK):
        place = slice(start, start + BLOCK)
        values = np.stack([tensor[place] for tensor in flat])
        yield place, values.astype(np.float64) if values.dtype.kind == "f" else values


def coordinatewise(
    current: Tensors, kinds: Mapping[str, str], updates: Sequence[SiteUpdate], how: str, trim: int = 0
) -> Tensors:
    """``median`` or ``mean`` (after ``trim`` values at each end are left out) of every coordinate of every float."""
    ordered = sorted(updates, key=lambda u: u.site)
    result: Tensors = {}
    for name, kind in kinds.items():
        tensors = [u.tensors[name] for u in ordered]
        dtype = tensors[0].dtype if kind == "counter" else current[name].dtype
        found = np.empty(tensors[0].size, dtype)
        for place, values in pieces(tensors):
            if kind == "counter":
                found[place] = middle(values)
            elif how == "median":
                found[place] = np.median(values, axis=0)
            else:
                found[place] = np.sort(values, axis=0)[trim : len(values) - trim].mean(axis=0)
        result[name] = found.reshape(tensors[0].shape)
    return result
