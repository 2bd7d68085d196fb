"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine learning with adversaries", sections 4 and 5).

A site's score is the sum of the squared distances of its weights to those of its ``K - f - 2`` nearest sites; the
weights of the ``m`` sites with the least scores are averaged alike (``m = 1``: Krum). With ``f`` false sites the proof
needs ``K >= 2 f + 3``; ``m`` may be ``K - f`` at most. Sites count alike, whatever ``strategy.weighting`` says. Buffers
and counters are in no distance, for their scale is another, and so a chosen site's would be anything: they take the
coordinate-wise median over all sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Tensors, parameters_of, register_algorithm
from fed_diffmic.algorithms.robust import coordinatewise, pieces
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own
from fed_diffmic.errors import RoundError


def scores(updates: Sequence[SiteUpdate], names: Sequence[str], false: int) -> np.ndarray:
    """Krum's score of each update, in the order given."""
    count = len(updates)
    distance = np.zeros((count, count))
    for name in names:
        for _, values in pieces([u.tensors[name] for u in updates]):
            for i in range(count):
                apart = values[i + 1 :] - values[i]
                distance[i, i + 1 :] += np.einsum("ij,ij->i", apart, apart)
    distance += distance.T
    nearest = np.sort(distance + np.diag(np.full(count, np.inf)), axis=1)[:, : count - false - 2]
    return np.asarray(nearest.sum(axis=1))


@dataclass(frozen=True)
class Options(Own):
    """Krum (Blanchard et al. 2017): the site nearest to its neighbours; false_sites of 2 f + 3 may send anything."""

    false_sites: int = option(0, "number f of sites that may send anything", ge=0, le=10_000)
    krum_keep: int = option(1, "number m of sites whose weights are averaged", ge=1, le=10_000)


@register_algorithm("krum", Options)
class Krum(Algorithm):
    """``strategy.false_sites`` is ``f``, ``strategy.krum_keep`` is ``m``."""

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
        """The chosen sites' mean weights; raises RoundError where too few replied for the proof, or for ``m``."""
        false, keep = self.options.false_sites, self.options.krum_keep
        least = max(2 * false + 3, keep + false)
        if len(updates) < least:
            raise RoundError(
                f"strategy=krum with false_sites={false} and krum_keep={keep} needs {least} updates; "
                f"{len(updates)} came",
                "Lower strategy.false_sites or strategy.krum_keep, or wait for more sites (run.quorum).",
            )
        ordered = sorted(updates, key=lambda u: u.site)
        names = parameters_of(kinds)
        best = np.argsort(scores(ordered, names, false), kind="stable")[:keep]
        chosen, rest = [ordered[i] for i in sorted(best)], {n: kind for n, kind in kinds.items() if n not in names}
        found = coordinatewise(current, dict.fromkeys(names, "parameter"), chosen, "mean")
        found |= coordinatewise(current, rest, ordered, "median")
        return {name: found[name] for name in kinds}, server_state
