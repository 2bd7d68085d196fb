"""Norm-clipped weighted mean (Sun et al. 2019, "Can you really backdoor federated learning?", section 4, no noise).

A site's change ``d_k = w_k - w`` of the parameters is cut to the length ``M``: ``w + sum_k p_k min(1, M / ||d_k||)
d_k``. One site can then move the model by ``p_k M`` at most, whatever it sends, and sites keep their weights, which the
median and Krum take from them. ``M`` is ``strategy.update_norm``, or where that is 0 the median of the sites' own
norms, so that it follows the training: half of the sites are never cut. It does not withstand many small steps into one
direction, nor half of the sites. Buffers and counters, which are no change to be cut, take the coordinate-wise median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import (
    Algorithm,
    SiteUpdate,
    Tensors,
    mean_change,
    parameters_of,
    register_algorithm,
)
from fed_diffmic.algorithms.robust import coordinatewise
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own


def change_norm(current: Tensors, update: SiteUpdate, names: Sequence[str]) -> float:
    """L2 norm of a site's change over all of ``names``."""
    squares = (np.square(update.tensors[n].astype(np.float64) - current[n].astype(np.float64)).sum() for n in names)
    return math.sqrt(math.fsum(float(value) for value in squares))


@dataclass(frozen=True)
class Options(Own):
    """Norm-clipped weighted mean (Sun et al. 2019): no site moves the model further than its share of a length."""

    update_norm: float = option(
        0.0, "largest L2 norm of a site's change, over all parameters; 0: the median of the sites' norms", ge=0
    )


@register_algorithm("clipped_mean", Options)
class ClippedMean(Algorithm):
    """``strategy.update_norm`` is ``M``; 0: the median of the sites' norms."""

    options: Options

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """The mean of the clipped changes."""
        weights, names = self.site_weights(updates), parameters_of(kinds)
        norms = {u.site: change_norm(current, u, names) for u in updates}
        longest = self.options.update_norm or float(np.median(list(norms.values())))
        factors = {site: weights[site] * min(1.0, longest / norm) if norm else 0.0 for site, norm in norms.items()}
        rest = coordinatewise(current, {n: k for n, k in kinds.items() if k != "parameter"}, updates, "median")
        change = mean_change(current, updates, names, factors)
        result = {
            name: rest[name]
            if name in rest
            else np.asarray((current[name].astype(np.float64) + change[name]).astype(current[name].dtype))
            for name in kinds
        }
        return result, server_state
