"""Which round of a stage was the best: what its sites' validation metrics say, and what one of them alone cannot say.

Without a guard (a simulation, a consortium of two) a round has one score, the figure's mean over the sites, and the
highest is kept. Such a mean is anybody's who says 1 in the round that he wants and 0 in the others. With a guard
rounds are compared site by site: each site's figure now less its own in the best round so far, and of these
differences a mean that leaves out either end (:func:`fed_diffmic.algorithms.shares.trimmed`). What a site says then
moves the comparison within what the others say, and not at all where they agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fed_diffmic.algorithms.shares import LEAST_SITES, capped, trimmed

Metrics = Mapping[str, Mapping[str, float]]
NOBODY_SAYS = [0.0, 0.0]


def weighted_mean(metrics: Metrics, name: str, max_share: float = 1.0) -> float | None:
    """Mean of a figure over the sites that define it, weighted by ``num_examples``; none if none does.

    Args:
        max_share: the largest share of one site.
    """
    pairs = {
        site: (f[name], f["num_examples"])
        for site, f in sorted(metrics.items())
        if name in f and f.get("num_examples", 0) > 0
    }
    weights = capped({site: float(weight) for site, (_, weight) in pairs.items()}, max_share)
    total = math.fsum(weights.values())
    return math.fsum(value * weights[site] for site, (value, _) in pairs.items()) / total if total else None


def selection_score(metrics: Metrics, select: str, max_share: float = 1.0, *, guarded: bool = False) -> list[float]:
    """What the best round has the largest of, compared as a list.

    The figure's mean over the sites that define it, weighted by their validation images; where no
    site defines it, minus the mean loss, which ranks below any defined figure. With a guard a figure of one site alone
    counts as none.
    """
    for rank, name, sign in _wanted(select):
        mean = weighted_mean(metrics, name, max_share)
        speakers = sum(_says(metrics, site, name) for site in metrics)
        if mean is not None and (speakers > 1 or not guarded):
            return [rank, sign * mean]
    return list(NOBODY_SAYS)  # nobody says anything: run_stage then keeps the last round


def is_better(
    score: Sequence[float], best_score: Sequence[float], metrics: Metrics, best: Metrics, select: str, guarded: bool
) -> bool:
    """Whether a round takes the place of the best one so far.

    Where no site says how good a round is (privacy), the last one is kept: choosing would read the data.

    Args:
        score, best_score: of the round and of the best one (:func:`selection_score`); empty: there is none yet.
        metrics, best: the sites' metrics in both.
        select: the figure that decides.
        guarded: whether one site of the run is to be withstood.
    """
    if not best_score:
        return True
    if not guarded:
        return list(score) > list(best_score) or list(score) == NOBODY_SAYS
    if NOBODY_SAYS in (list(score), list(best_score)):
        return list(best_score) == NOBODY_SAYS
    differences = [_differences(metrics, best, name, sign) for _, name, sign in _wanted(select)]
    for found in differences:
        if len(found) >= LEAST_SITES:
            return float(trimmed([change for change, _ in found], [weight for _, weight in found])) > 0.0
    # Only two speak of both rounds: nobody knows which one to believe where they contradict each other.
    return any(len(found) > 1 and all(change > 0 for change, _ in found) for found in differences[:1])


def is_better_sum(score: Sequence[float], best_score: Sequence[float]) -> bool:
    """Whether a round takes the place of the best one so far, by what is known of all sites' images together alone.

    Where no round has such a figure, the last one is kept. A round without one, as where a site of the sum was away, is
    never better than one with: which of them is, nobody knows.
    """
    if not best_score or list(best_score) == NOBODY_SAYS:
        return True
    return list(score) > list(best_score)


def _differences(metrics: Metrics, best: Metrics, name: str, sign: float) -> list[tuple[float, float]]:
    """By how much the round is better at each site that speaks of both, and the site's weight."""
    both = [site for site in sorted(metrics) if _says(metrics, site, name) and _says(best, site, name)]
    return [
        (
            sign * (metrics[site][name] - best[site][name]),
            min(metrics[site]["num_examples"], best[site]["num_examples"]),
        )
        for site in both
    ]


def _wanted(select: str) -> tuple[tuple[float, str, float], ...]:
    return (2.0, select, -1.0 if select == "loss" else 1.0), (1.0, "loss", -1.0)


def _says(metrics: Metrics, site: str, name: str) -> bool:
    said = metrics.get(site, {})
    return name in said and said.get("num_examples", 0) > 0
