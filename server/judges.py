"""Which rounds are judged, and by whom: a site without validation images has nothing to say of any.

A round that nobody judges cannot be a stage's best one, and costs one exchange less. The last round is always judged.
Those who judge are the same sites in every round of a run, for rounds are compared by what they say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

from fed_diffmic.seeding import numpy_generator
from server.federation import Federation
from server.terms import RunTerms

VAL = 1


def is_judged(terms: RunTerms, index: int, rounds: int) -> bool:
    """Whether a stage's round of that index (from 1) of so many is judged."""
    return index % terms.metrics_every == 0 or index >= rounds


def able(claims: Mapping[str, Mapping[str, Any]], everyone: Set[str]) -> set[str] | None:
    """Names of the sites that have validation images or keep their number back; none: everyone, or nobody, has.

    Args:
        claims: what each site said of its images when it was found.
        everyone: who is expected, or there; who was not found yet counts as able.
    """
    found = {name for name in everyone if name not in claims or claims[name]["images"][VAL] != 0}
    return found if 0 < len(found) < len(everyone) else None


def judges(run: Federation, stage: str) -> set[str] | None:
    """Names of those who judge a stage's rounds: of the able ones all, or the share that ``metrics_share`` draws.

    Returns:
        none: everyone.
    """
    everyone, spec = run.exchange.everyone(), run.spec
    some = able(run.run_state.claims, everyone)
    if run.terms.metrics_share == 1.0:
        return some
    names = sorted(everyone if some is None else some)
    count = max(1, math.ceil(run.terms.metrics_share * len(names) - 1e-9))
    rng = numpy_generator(spec.seed, "judges", spec.arm, stage)
    return {names[number] for number in rng.choice(len(names), count, replace=False)}
