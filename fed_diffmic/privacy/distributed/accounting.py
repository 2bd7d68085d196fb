"""What rounds of shared noise cost a site's units: with honest others, and alone.

The divergence behind it, and why it holds: :mod:`fed_diffmic.privacy.distributed.divergence`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.distributed.form import NoisyForm


@dataclass(frozen=True)
class Cost:
    """What a site's units pay for rounds, under two assumptions.

    Attributes:
        honest: if so many others as the site assumes add their shares.
        alone: if nobody else adds any.
    """

    honest: Mechanism
    alone: Mechanism


def cost(form: NoisyForm, rate: float, honest_sites: int, steps: int = 1) -> Cost:
    """The cost of rounds of one step.

    Args:
        form: of the rounds.
        rate: probability that a unit takes part.
        honest_sites: how many *other* sites are taken to add their share.
        steps: rounds.
    """
    return cost_of(form.deviation / form.sensitivity, rate, honest_sites, steps)


def cost_of(share: float, rate: float, honest_sites: int, steps: int = 1) -> Cost:
    """As :func:`cost`, of a share over what a unit can change."""
    together = share * math.sqrt(1 + honest_sites)
    alone = Mechanism(rate, share, steps, discrete=True)
    return Cost(Mechanism(rate, together, steps, discrete=True), alone)


def share_for(
    target: float, delta: float, rate: float, rounds: int, honest_sites: int, fixed: Sequence[Mechanism] = ()
) -> float:
    """The share with which so many rounds cost at most ``target`` if so many others are honest.

    Args:
        fixed: what is spent besides.

    Returns:
        at most a thousandth above the smallest.

    Raises:
        ValueError: no noise would do.
    """

    def price(share: float) -> float:
        return epsilon([*fixed, cost_of(share, rate, honest_sites, rounds).honest], delta)

    low, high = 1e-3, 1.0
    while price(high) > target:
        low, high = high, high * 2
        if high > 1e6:
            raise ValueError("no noise brings so many rounds to that epsilon")
    while high / low > 1 + 1e-3:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if price(middle) > target else (low, middle)
    return high
