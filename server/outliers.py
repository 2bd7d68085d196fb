"""Updates that are much larger than those of the other sites of a round: made smaller, or left out.

The absolute bound of the configuration (``run.max_update_norm``) has to leave room for every model and every learning
rate. What a round's other sites did says much better what is plausible: an update may be ``run.norm_multiple`` times
the median of the round's norms. Trained parameters, running statistics, and the algorithm's own tensors are measured
apart, for statistics of large numbers would otherwise lend their size to a bias.

Nothing is done with fewer than three updates, of which no median withstands one, and where the median is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from fed_diffmic.algorithms.shares import LEAST_SITES
from fed_diffmic.exchange.screening import update_norm
from server.bounds import CLIP, OFF, Bounds

PARAMETERS, STATISTICS, OF_ALGORITHM = "parameters", "statistics", "algorithm"


@dataclass(frozen=True)
class Plausible:
    """Updates after the rule.

    Attributes:
        updates: those that stay, in the order given.
        clipped: by site, how many times the bound its largest group was (above 1).
        refused: sites that were left out.
    """

    updates: list[SiteUpdate]
    clipped: dict[str, float]
    refused: list[str]


def plausible(
    current: Tensors, sent: Tensors, kinds: Mapping[str, str], updates: Sequence[SiteUpdate], bounds: Bounds
) -> Plausible:
    """The updates as ``run.norm_rule`` leaves them.

    Args:
        current: the round's global tensors.
        sent: the algorithm's own tensors as they were sent.
        kinds: of the exchanged tensors.
        updates: screened.
        bounds: the rule.
    """
    if bounds.norm_rule == OFF or len(updates) < LEAST_SITES:
        return Plausible(list(updates), {}, [])
    groups = {
        PARAMETERS: [name for name, kind in kinds.items() if kind == "parameter"],
        STATISTICS: [name for name, kind in kinds.items() if kind == "buffer"],
        OF_ALGORITHM: sorted(sent),
    }
    whole = {**current, **sent}
    norms = {
        group: [update_norm({n: {**u.tensors, **u.algorithm_tensors}[n] for n in names}, whole) for u in updates]
        for group, names in groups.items()
        if names
    }
    found = Plausible([], {}, [])
    for number, update in enumerate(updates):
        excess = {group: _excess(values, number, bounds.norm_multiple) for group, values in norms.items()}
        most = max(excess.values(), default=0.0)
        if most <= 1.0:
            found.updates.append(update)
        elif bounds.norm_rule == CLIP:
            found.updates.append(_shrunk(update, whole, groups, excess))
            found.clipped[update.site] = most
        else:
            found.refused.append(update.site)
    return found


def _excess(norms: Sequence[float], number: int, multiple: float) -> float:
    """How many times its bound one site's norm is; 0 where there is no bound."""
    bound = multiple * float(np.median(norms))
    return norms[number] / bound if bound > 0.0 else 0.0


def _shrunk(
    update: SiteUpdate, whole: Tensors, groups: Mapping[str, Sequence[str]], excess: Mapping[str, float]
) -> SiteUpdate:
    """With the change of each group that is too large divided by its excess; between two variances lies a variance."""
    factors = {
        name: 1.0 / excess[group] for group, names in groups.items() if excess.get(group, 0.0) > 1.0 for name in names
    }

    def moved(tensors: Tensors) -> Tensors:
        return {n: _towards(whole[n], value, factors[n]) if n in factors else value for n, value in tensors.items()}

    return replace(update, tensors=moved(update.tensors), algorithm_tensors=moved(update.algorithm_tensors))


def _towards(before: np.ndarray, after: np.ndarray, factor: float) -> np.ndarray:
    start = before.astype(np.float64)
    return np.asarray((start + factor * (after.astype(np.float64) - start)).astype(after.dtype))
