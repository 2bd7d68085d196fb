"""Group ``policy.budget``: how much of a site's privacy budget one run, and one round, may take."""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.config.fields import Checked, option


@dataclass(frozen=True)
class BudgetRules(Checked):
    """Shares of what is left of the lifetime budget (``privacy.budget``) when a run begins, for the worst unit.

    They hold before anything is computed; noise that is computed from ``privacy.epsilon`` takes them into account, so
    that a run that was planned so never meets them.
    """

    run_share: float | None = option(
        None,
        "most that one run may spend, as a share of what is left when it begins; null: a third, and never less than "
        "privacy.epsilon, which the site means for one run",
        gt=0,
        le=1,
    )
    round_share: float = option(
        1 / 3, "most that one round by itself may cost, as a share of what is left when its run begins", gt=0, le=1
    )
