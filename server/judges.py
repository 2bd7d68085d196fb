"""Which rounds are judged, and by whom: a site without validation images has nothing to say of any.

A round that nobody judges cannot be a stage's best one, and costs one exchange less. The last round is always judged.
Those who judge are the same sites in every round of a run, for rounds are compared by what they say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.seeding import numpy_generator
from server.terms import RunTerms

VAL = 1


def is_judged(terms: RunTerms, index: int, rounds: int) -> bool:
    """Whether a stage's round of that index (from 1) of so many is judged."""
    return index % terms.metrics_every == 0 or index >= rounds


def able(claims: Mapping[str, Mapping[str, Any]]) -> set[str] | None:
    """Names of the sites that have validation images or keep their number back; none: everyone, or nobody, has.

    Args:
        claims: what each site said of its images when it was found.
    """
    found = {name for name, claim in claims.items() if claim["images"][VAL] != 0}
    return found if 0 < len(found) < len(claims) else None


def judges(spec: RunSpec, terms: RunTerms, stage: str, claims: Mapping[str, Mapping[str, Any]]) -> set[str] | None:
    """Names of those who judge a stage's rounds: of the able ones all, or the share that ``metrics_share`` draws.

    Returns:
        none: everyone.
    """
    some = able(claims)
    if terms.metrics_share == 1.0:
        return some
    names = sorted(claims if some is None else some)
    count = max(1, math.ceil(terms.metrics_share * len(names) - 1e-9))
    rng = numpy_generator(spec.seed, "judges", spec.arm, stage)
    return {names[number] for number in rng.choice(len(names), count, replace=False)}
