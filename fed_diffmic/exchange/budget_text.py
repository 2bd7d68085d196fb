"""What a site's policy and its privacy mean together: which stages train with which epsilon, and a run's share."""

from __future__ import annotations

from collections.abc import Sequence

from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.site import PolicyConfig


def privacy_sentences(policy: PolicyConfig, privacy: PrivacyConfig | None) -> list[str]:
    """What the section on privacy says.

    Args:
        policy: group ``policy``.
        privacy: group ``privacy`` of the same site; none: not known.
    """
    found = []
    if privacy is None or privacy.name == "none":
        if policy.privacy == "required":
            found.append("A stage trains here with differential privacy (group privacy) or not at all.")
        else:
            found.append(
                f"Differential privacy is not required: where a stage trains without it, {_seen(policy)}, and what it "
                "tells about single patients is made harder to read by the floors above but is not bounded."
            )
    else:
        found += _protected(policy, privacy)
    return [*found, _shares(policy.budget)]


def _protected(policy: PolicyConfig, privacy: PrivacyConfig) -> list[str]:
    stages, unit = [s for s in policy.stages if s in privacy.stages], privacy.unit
    others = [s for s in policy.stages if s not in privacy.stages]
    budget = privacy.epsilon if privacy.budget is None else privacy.budget
    found = []
    if privacy.mechanism == "distributed":
        found += _shared(policy, privacy, stages)
    elif stages:
        noise = f"Noise of {privacy.noise_multiplier!r} times the clipping bound is added in each step"
        cost = f"{noise}; what a run costs by it depends on its rounds"
        if privacy.noise_multiplier is None:
            cost = f"One run is bounded by epsilon {privacy.epsilon!r}, all rounds of all its stages together"
        who = f"for one {unit} more or less"
        found.append(f"{_stages(stages)} with differential privacy, {who}. {cost} (delta {privacy.delta!r}).")
    if budget is not None and privacy.mechanism == "local":
        found.append(
            f"Over all runs a {unit} spends at most epsilon {budget!r} (or what a person granted: `fed-diffmic ledger "
            "show`); then the site trains no more on these data."
        )
    if others and policy.privacy == "required":
        found.append(f"{_stages(others, 'does', 'do')} not train: differential privacy is required.")
    elif others and privacy.allow_unprotected:
        found.append(f"{_stages(others)} without privacy, and no epsilon holds for these data any more.")
    elif others:
        found.append(f"{_stages(others, 'is', 'are')} refused: privacy.stages does not name it.")
    return found


def _seen(policy: PolicyConfig) -> str:
    """Who sees an update without noise."""
    if policy.secure_aggregation == "required":
        return "its update is seen by nobody but in a sum (see above); the sum has no noise"
    return (
        "the coordinator sees the update as it is"
        if policy.secure_aggregation == "off"
        else ("the coordinator sees the update as it is, or in a sum, as the run says")
    )


def _shared(policy: PolicyConfig, privacy: PrivacyConfig, stages: Sequence[str]) -> list[str]:
    """Of noise that sites share: what leaves, whose honesty it rests on, and both budgets."""
    unit, honest = privacy.unit, privacy.honest_sites
    budget = privacy.epsilon if privacy.budget is None else privacy.budget
    named = (
        "; nobody else is counted on"
        if not honest
        else (f", if of the other sites in each sum at least {honest} add their share and give nothing of it away")
    )
    found = []
    if stages:
        found.append(
            f"{_stages(stages)} with differential privacy, for one {unit} more or less, with noise that several sites "
            "share: what leaves is the sum of this site's clipped gradients with its share, as whole numbers under "
            "masks, and never as it is. policy.max_update_norm does not bound it: noise is most of it."
        )
    found.append(
        f"Over all runs a {unit} spends at most epsilon {budget!r} (delta {privacy.delta!r}){named}; and at most "
        f"{privacy.budget_alone!r} if no other site adds any noise (or what a person granted: `fed-diffmic ledger "
        "show`). Beyond either the site trains no more on these data."
    )
    if honest:
        found.append(
            f"A sum is over {policy.min_sites} others or more, so up to {policy.min_sites - honest} of them may be "
            "dishonest in the smallest one; masks have to bear that, by the number of sites that share their secrets, "
            "else nothing leaves."
        )
    return found


def _shares(rules: BudgetRules) -> str:
    run = (
        "a third of what is left of the budget when it begins (or privacy.epsilon, where that is more)"
        if rules.run_share is None
        else f"{_share(rules.run_share)} of what is left of the budget when it begins"
    )
    return (
        f"Where training is private one run may spend at most {run}, and one round by itself "
        f"{_share(rules.round_share)} of it; a request beyond that is refused before anything is computed."
    )


def _share(share: float) -> str:
    return {1 / 3: "a third", 0.5: "half", 1.0: "all"}.get(share, f"a share of {share!r}")


def _stages(names: Sequence[str], one: str = "trains", more: str = "train") -> str:
    if len(names) == 1:
        return f"The stage {names[0]} {one}"
    return f"The stages {', '.join(names[:-1])} and {names[-1]} {more}"
