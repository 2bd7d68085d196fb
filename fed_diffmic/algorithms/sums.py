"""What an algorithm gets instead of updates where their weighted sums are enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fed_diffmic.algorithms.updates import SiteUpdate, Tensors, mean_change, weighted_average


@dataclass(frozen=True)
class Sums:
    """Weighted sums over the sites of a round. Tensors are made when they are asked for, one at a time.

    Attributes:
        sites: who is in them, in the order of names, with what each said of itself and without a tensor. Where nobody
            may know what one site said, each stands there with one image.
        mean: the weighted mean ``sum_k p_k w_k`` of an exchanged tensor, by its name, in its own dtype; of a counter
            one number that is no quantity to average (plain: the largest).
        change: of a floating-point tensor, exchanged or the algorithm's own, ``sum_k p_k (w_k - w)`` in float64, with
            ``w`` as it was sent; of parameters ``sum_k q_k (w_k - w)``, where the algorithm has such ``q_k``
            (:meth:`fed_diffmic.algorithms.base.Algorithm.rates`).
        moves: ``sum_k p_k a_k``, where each site divided its change of the parameters by ``a_k`` itself and nobody
            knows the steps of one (:meth:`fed_diffmic.algorithms.base.Algorithm.moves`); none: what sites say tells it.
        coarse: tensors some of whose changes were too large to be summed as finely as the others, with the quantum.
        share: of the weight of all sites of the run, those that took no part included, what the sites in them have;
            none: not known.
    """

    sites: Sequence[SiteUpdate]
    mean: Callable[[str], np.ndarray]
    change: Callable[[str], np.ndarray]
    coarse: Mapping[str, float] = field(default_factory=dict)
    moves: float | None = None
    share: float | None = None

    @property
    def count(self) -> int:
        """How many sites are in them."""
        return len(self.sites)

    def present(self, sites: int | None) -> float:
        """:attr:`share`; where it is not known, how many of ``sites`` sites are in them (none: all that there are).

        ``share * p_k`` is then the same for a site in every round, whoever else takes part: what an algorithm adds up
        over rounds of the sites' own states is their mean, with the weights that all sites of the run have.
        """
        return self.count / max(sites or self.count, self.count) if self.share is None else self.share


def bare(update: SiteUpdate) -> SiteUpdate:
    """An update without its tensors: what the site said of itself."""
    return replace(update, tensors={}, algorithm_tensors={})


def plain_sums(
    before: Tensors,
    kinds: Mapping[str, str],
    updates: Sequence[SiteUpdate],
    weights: Mapping[str, float],
    rates: Mapping[str, float],
) -> Sums:
    """The sums of updates that are all there, in float64 in the order of site names.

    Args:
        before: what the sites were sent: global tensors and the algorithm's own.
        kinds: of the exchanged tensors.
        updates: screened.
        weights: ``p_k``, normalised.
        rates: ``q_k``.
    """
    whole = [replace(u, tensors={**u.tensors, **u.algorithm_tensors}) for u in updates]

    def mean(name: str) -> np.ndarray:
        return weighted_average(updates, {name: kinds[name]}, weights)[name]

    def change(name: str) -> np.ndarray:
        return mean_change(before, whole, [name], rates if kinds.get(name) == "parameter" else weights)[name]

    return Sums([bare(u) for u in sorted(updates, key=lambda u: u.site)], mean, change)


def with_means(moved: Mapping[str, np.ndarray], current: Tensors, kinds: Mapping[str, str], sums: Sums) -> Tensors:
    """Moved parameters in their own dtype, and of everything else the mean, in the order of ``kinds``."""
    return {n: np.asarray(moved[n].astype(current[n].dtype)) if n in moved else sums.mean(n) for n in kinds}
