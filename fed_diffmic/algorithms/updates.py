"""What sites return for a round, and the averages of it in float64, by name of site: the slow twin of every sum.

The coordinator of a run adds in integers (:mod:`server.fold`), whose result does not depend on an order; what is here
is what that is held against, and what an algorithm that sees single updates is written with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fed_diffmic.errors import RoundError

Tensors = dict[str, np.ndarray]
"""Named arrays: weights, buffers, or an algorithm's state."""

EXTRA = "algorithm/"
"""What the names of an algorithm's own tensors begin with, on the wire and in a site's state."""


@dataclass(frozen=True)
class SiteUpdate:
    """What one site returned for a round, after screening.

    Attributes:
        site: name.
        tensors: the exchanged tensors after the local update.
        num_examples: training images the update was computed on (positive).
        algorithm_tensors: the algorithm's own tensors, by the names under which they were sent.
        steps: optimizer steps of the update; none: the site did not say.
        initial_loss: mean loss of the round's global weights on the site's training images; none: it did not say.
    """

    site: str
    tensors: Tensors
    num_examples: int
    algorithm_tensors: Tensors = field(default_factory=dict)
    steps: float | None = None
    initial_loss: float | None = None


def weighted_average(updates: Sequence[SiteUpdate], kinds: Mapping[str, str], weights: Mapping[str, float]) -> Tensors:
    """Average floats in float64 in the order of site names; counters take the largest value.

    Parameters and floating buffers keep their dtype; counters (``num_batches_tracked``) are not
    quantities to average.
    """
    ordered = sorted(updates, key=lambda u: u.site)
    result: Tensors = {}
    for name, kind in kinds.items():
        values = [u.tensors[name] for u in ordered]
        if kind == "counter":
            result[name] = np.maximum.reduce(values)
            continue
        total = np.zeros(values[0].shape, dtype=np.float64)
        for update, value in zip(ordered, values, strict=True):
            total += weights[update.site] * value.astype(np.float64)
        result[name] = np.asarray(total.astype(values[0].dtype))
    return result


def mean_change(
    current: Tensors, updates: Sequence[SiteUpdate], names: Sequence[str], weights: Mapping[str, float]
) -> Tensors:
    """``sum_k p_k (w_k - w)`` in float64 for each of ``names``, in the order of site names."""
    result = {name: np.zeros(current[name].shape, dtype=np.float64) for name in names}
    for update in sorted(updates, key=lambda u: u.site):
        for name in names:
            result[name] += weights[update.site] * (
                update.tensors[name].astype(np.float64) - current[name].astype(np.float64)
            )
    return result


def parameters_of(kinds: Mapping[str, str]) -> list[str]:
    """Names of kind ``parameter``: server optimizers move these; buffers and counters are averaged."""
    return [name for name, kind in kinds.items() if kind == "parameter"]


def with_rest(
    moved: Tensors,
    current: Tensors,
    kinds: Mapping[str, str],
    updates: Sequence[SiteUpdate],
    weights: Mapping[str, float],
) -> Tensors:
    """Moved parameters in their own dtype, and everything else averaged as in FedAvg, in the order of ``kinds``."""
    rest = weighted_average(updates, {n: k for n, k in kinds.items() if n not in moved}, weights)
    return {n: np.asarray(moved[n].astype(current[n].dtype)) if n in moved else rest[n] for n in kinds}


def stated(updates: Sequence[SiteUpdate], figure: str, strategy: str) -> dict[str, float]:
    """A figure of every update by site, for an algorithm that cannot do without it.

    Raises:
        RoundError: a site did not say it; names the sites.
    """
    values = {u.site: getattr(u, figure) for u in updates}
    silent = sorted(site for site, value in values.items() if value is None)
    if silent:
        raise RoundError(
            f"strategy={strategy} needs the figure {figure}, which did not come from {', '.join(silent)}",
            f"Let it out at the site (policy.metrics must name {figure}; private training sends none), or choose "
            "another strategy.",
        )
    return {site: float(value) for site, value in values.items() if value is not None}
