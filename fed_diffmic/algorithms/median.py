"""Coordinate-wise median (Yin et al. 2018, "Byzantine-robust distributed learning", Definition 1).

Every coordinate of the next global weights is the median of the sites' values. Sites count alike, whatever
``strategy.weighting`` says: a number of images that a site made up must not help it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Tensors, register_algorithm
from fed_diffmic.algorithms.robust import coordinatewise
from fed_diffmic.config.owners import Own


@dataclass(frozen=True)
class Options(Own):
    """Coordinate-wise median (Yin et al. 2018): fewer than half of the sites may send anything at all."""


@register_algorithm("median", Options)
class Median(Algorithm):
    """Sites train freely; fewer than half of them may send anything at all."""

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """The median of every coordinate."""
        return coordinatewise(current, kinds, updates, "median"), server_state
