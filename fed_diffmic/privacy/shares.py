"""What a run, and one of its rounds, may take of a site's budget: shares of what was left when the run began.

A lifetime's budget that one request can spend is no budget. So a run may take a share of it, and a round a share by
itself (:class:`fed_diffmic.config.policy_budget.BudgetRules`). Both are of what was left before the run's first line,
so that the plan that was made then holds until the run ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.privacy.account import Account
from fed_diffmic.privacy.units import UnitSet

RUN_SHARE = 1 / 3


@dataclass(frozen=True)
class Allowance:
    """Epsilon, for the worst unit of a training set.

    Attributes:
        left: of the lifetime budget, when the run began.
        run: most that the run may spend, all its rounds and released counts together.
        round: most that one round may cost by itself.
    """

    left: float
    run: float
    round: float


def allowance(
    account: Account, units: UnitSet, run: str, privacy: PrivacyConfig, rules: BudgetRules | None
) -> Allowance:
    """What a run may take, as it stood before its first line.

    Args:
        account: the site's.
        units: its training set.
        run: name of the run; one that has no line yet begins now.
        privacy: of the site: with noise that is computed, a run is meant to spend ``privacy.epsilon``.
        rules: none: a virtual site; a run and a round may take all that is left.
    """
    before = next((i for i, entry in enumerate(account.entries()) if entry.run == run), None)
    return shares(account.terms.budget - account.spent(units, first=before), privacy, rules)


def shares(left: float, privacy: PrivacyConfig, rules: BudgetRules | None) -> Allowance:
    """What a run that begins with so much left may take."""
    left = max(0.0, left)
    if rules is None:
        return Allowance(left, left, left)
    share = rules.run_share
    run = left * (RUN_SHARE if share is None else share)
    if share is None and privacy.epsilon is not None:
        run = max(run, min(left, privacy.epsilon))
    return Allowance(left, run, left * rules.round_share)
