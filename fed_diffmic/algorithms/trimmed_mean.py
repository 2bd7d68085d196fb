"""Coordinate-wise trimmed mean (Yin et al. 2018, Definition 2).

Of every coordinate the ``floor(beta K)`` smallest and largest of the ``K`` sites' values are left out and the rest is
averaged. Sites count alike, whatever ``strategy.weighting`` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Tensors, register_algorithm
from fed_diffmic.algorithms.robust import coordinatewise
from fed_diffmic.errors import RoundError


@register_algorithm("trimmed_mean")
class TrimmedMean(Algorithm):
    """``strategy.trim`` is ``beta``; that share of the sites may send anything at all."""

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """The trimmed mean; raises RoundError where too few sites replied for anything to be left out."""
        trim = math.floor(self.config.trim * len(updates) + 1e-9)
        if self.config.trim > 0 and trim == 0:
            raise RoundError(
                f"strategy=trimmed_mean leaves out floor({self.config.trim:g} x {len(updates)}) = 0 values: a plain "
                "mean, which withstands nothing",
                "Use a larger strategy.trim, or more sites.",
            )
        return coordinatewise(current, kinds, updates, "mean", trim), state
