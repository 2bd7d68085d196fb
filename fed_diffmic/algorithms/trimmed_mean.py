"""Coordinate-wise trimmed mean (Yin et al. 2018, Definition 2).

Of every coordinate the ``floor(beta K)`` smallest and largest of the ``K`` sites' values are left out and the rest is
averaged. Sites count alike, whatever ``strategy.weighting`` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Tensors, register_algorithm
from fed_diffmic.algorithms.robust import coordinatewise
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own
from fed_diffmic.errors import RoundError


@dataclass(frozen=True)
class Options(Own):
    """Coordinate-wise trimmed mean (Yin et al. 2018): the largest and smallest values are left out."""

    trim: float = option(0.25, "share of the values left out at each end", ge=0, lt=0.5)


@register_algorithm("trimmed_mean", Options)
class TrimmedMean(Algorithm):
    """``strategy.trim`` is ``beta``; that share of the sites may send anything at all."""

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
        """The trimmed mean; raises RoundError where too few sites replied for anything to be left out."""
        trim = math.floor(self.options.trim * len(updates) + 1e-9)
        if self.options.trim > 0 and trim == 0:
            raise RoundError(
                f"strategy=trimmed_mean leaves out floor({self.options.trim:g} x {len(updates)}) = 0 values: a plain "
                "mean, which withstands nothing",
                "Use a larger strategy.trim, or more sites.",
            )
        return coordinatewise(current, kinds, updates, "mean", trim), server_state
