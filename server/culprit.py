"""A round that one site's update breaks: which site that is, and the round without it.

Screening bounds every number by itself. What still breaks an aggregation (a sum that overflows, an algorithm that
divides by zero, a figure that an algorithm needs and one site does not say) is searched here by leaving out one site
at a time, so that one site's doing costs that site its round and not everybody the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.screening import update_norm

Step = Callable[[Sequence[SiteUpdate]], tuple[Tensors, Tensors]]
BROKEN = (RoundError, ArithmeticError, ValueError)
LEAST_FOR_A_VOTE = 3


def aggregated(step: Step, updates: Sequence[SiteUpdate], current: Tensors, where: str) -> tuple[Tensors, Tensors, str]:
    """What ``step`` makes of the updates, and the name of the site that had to be left out for it (empty: nobody).

    Where the step succeeds without any one of several sites, the one whose update is largest is left out; of two sites
    nobody can say which it is, unless only one of them breaks it.

    Args:
        step: aggregates updates; deterministic, without side effects.
        updates: screened.
        current: the round's global tensors.
        where: stage and round, for messages.

    Raises:
        RoundError: no single site's absence mends it.
    """
    try:
        return (*_quiet(step, updates), "")
    except BROKEN as error:
        found = _without_one(step, updates, current)
        if found is None:
            if isinstance(error, RoundError):
                raise
            raise RoundError(
                f"{where}: the updates of {', '.join(sorted(u.site for u in updates))} cannot be aggregated "
                f"({type(error).__name__}), and no single site is the cause",
                "Lower the learning rates, or choose another strategy.",
            ) from error
        return found


def _without_one(step: Step, updates: Sequence[SiteUpdate], current: Tensors) -> tuple[Tensors, Tensors, str] | None:
    mended: dict[str, tuple[Tensors, Tensors]] = {}
    ordered = sorted(updates, key=lambda u: (-_size(u.tensors, current), u.site))
    for update in ordered if len(updates) > 1 else []:
        try:
            mended[update.site] = _quiet(step, [u for u in updates if u.site != update.site])
        except BROKEN:
            continue
    if not mended or (len(mended) > 1 and len(updates) < LEAST_FOR_A_VOTE):
        return None
    site = next(iter(mended))
    return (*mended[site], site)


def _quiet(step: Step, updates: Sequence[SiteUpdate]) -> tuple[Tensors, Tensors]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        new, server_state = step(updates)
    broken = sorted(
        name for name, value in server_state.items() if value.dtype.kind == "f" and not np.isfinite(value).all()
    )
    if broken:
        raise RoundError(f"the algorithm's own state {broken[0]} became infinite or not a number")
    return new, server_state


def _size(tensors: Tensors, current: Mapping[str, np.ndarray]) -> float:
    size = update_norm(tensors, dict(current))
    return size if np.isfinite(size) else float("inf")
