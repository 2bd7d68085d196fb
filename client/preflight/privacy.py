"""Would this site's privacy let it take part: its unit, its ledger, the network that is expected, the rounds that fit.

Nothing is spent and no line is written: the ledger is read, and what the expected rounds would cost is added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from client.distributed import check_company
from client.preflight.check import Check, failed, of_error, passed, warning
from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.manifest import OWN_GROUP
from fed_diffmic.data.pixels import alike, difference_hash
from fed_diffmic.data.site import Examples
from fed_diffmic.errors import BudgetError, ConfigError, LedgerError
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.masking.shamir import most_dishonest
from fed_diffmic.privacy.account import FOLDER, SLACK, Account, read_account
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.continuity import check, unit_secret
from fed_diffmic.privacy.distributed.accounting import cost_of
from fed_diffmic.privacy.dp_sgd import count_mechanism, make_plan, unit_members
from fed_diffmic.privacy.ledger_lines import narrowed
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.shares import shares
from fed_diffmic.privacy.units import unit_set
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.training.stages import build_module, exchanged

MOST_COMPARED = 20_000
GRANT = "A person here can raise it: `fed-diffmic ledger grant`. Or ask for fewer rounds, or set more noise."


def check_privacy(
    privacy: PrivacyConfig,
    spec: RunSpec,
    train: Examples,
    folder: Path,
    key: PrivateKey | None,
    *,
    rules: BudgetRules | None = None,
    witness: Path | None = None,
) -> Iterator[Check]:
    """The checks.

    Args:
        privacy: of the site, with a name other than ``none``.
        spec: of the run that is expected.
        train: the site's training images.
        folder: the site's own.
        key: its private key, if it can be read.
        rules: what a run and a round may take (``policy.budget``).
        witness: the file beside the key that remembers the ledger's head.
    """
    yield _unit(privacy, train)
    yield _alike(train)
    if privacy.test_seed is not None:
        yield warning(
            "privacy.noise", "privacy.test_seed is set: the noise can be told, and no guarantee holds", "Remove it."
        )
    stages = [stage for stage in privacy.stages if spec.stage(stage).rounds]
    yield from _networks(spec, stages)
    if key is None:
        yield warning("privacy.ledger", "not looked at: the site's key cannot be read", "Mend the key first.")
        return
    account: Account | None = None
    try:
        if not check(folder, key, witness=witness):
            account = read_account(folder)
            account.terms = narrowed(account.terms, privacy)
    except LedgerError as error:
        yield of_error("privacy.ledger", error)
        return
    lines = "none yet: it begins with the first round" if account is None else "whole, signed, and as long as it was"
    yield passed("privacy.ledger", lines)
    if privacy.mechanism == "distributed":
        yield _shared(privacy, spec, stages, train, folder, account)
        return
    try:
        yield _rounds(privacy, spec, stages, train, folder, account, rules)
    except (ConfigError, BudgetError) as error:
        yield of_error("privacy.budget", error)


def _unit(privacy: PrivacyConfig, train: Examples) -> Check:
    members = unit_members(train, privacy.unit)
    facts = {"units": len(members), "images": len(train)}
    if privacy.unit == "image":
        return passed("privacy.unit", f"an image, {len(members)} of them in training", **facts)
    if all(str(group).startswith(OWN_GROUP) for group in train.groups):
        return warning(
            "privacy.unit",
            "a patient, but the data name none: each image counts as a patient of its own",
            "Add the column patient_id; or set privacy.unit=image, which is what is protected now.",
            **facts,
        )
    most = max(len(own) for own in members)
    words = f"a patient, {len(members)} of them with {len(train)} images in training, at most {most} of one"
    if most > privacy.max_images:
        words += f"; {privacy.max_images} of them, at random, take part in a step (privacy.max_images)"
    return passed("privacy.unit", words, **facts)


def _alike(train: Examples) -> Check:
    """How many images look like another one's: a copy in another size or compression is no image of its own.

    Only counted. The ledger knows the same file and the same pixels again; it does not judge what merely looks alike.
    """
    if len(train) > MOST_COMPARED:
        return passed("privacy.alike", f"not looked at: more than {MOST_COMPARED:,} images", images=len(train))
    steps = range(0, len(train), 256)
    hashes = [difference_hash(train.images(np.arange(start, min(start + 256, len(train))))) for start in steps]
    pairs = alike(np.concatenate(hashes)) if hashes else np.zeros((0, 2), dtype=np.int64)
    apart = int((train.groups[pairs[:, 0]] != train.groups[pairs[:, 1]]).sum())
    facts = {"pairs": len(pairs), "apart": apart}
    if not apart:
        return passed("privacy.alike", f"{len(pairs)} pairs of training images look alike, all of one patient", **facts)
    return warning(
        "privacy.alike",
        f"{len(pairs)} pairs of training images look alike, {apart} of them under two patients",
        "Copies in another size or compression count as images, and under two numbers as patients, of their own: "
        "leave out what is one picture.",
        **facts,
    )


def _networks(spec: RunSpec, stages: Sequence[str]) -> Iterator[Check]:
    try:
        for stage in stages:
            module = build_module(spec, stage)
            check_private(module, exchanged(module))
    except ConfigError as error:
        yield failed(
            "privacy.network",
            f"the network that is expected cannot be trained with privacy: {error.cause}",
            error.remedy or "Ask the coordinator for another model.",
            exit_code=error.exit_code,
        )
    else:
        yield passed("privacy.network", f"each unit's gradient can be bounded in {' and '.join(stages) or 'no stage'}")


def _shared(
    privacy: PrivacyConfig,
    spec: RunSpec,
    stages: Sequence[str],
    train: Examples,
    folder: Path,
    account: Account | None,
) -> Check:
    """What the expected rounds would cost where sites share the noise: with honest others, and alone."""
    share, rate = spec.strategy.options.get("noise_share"), spec.strategy.options.get("sample_rate")
    if spec.strategy.name != "fedsgd" or share is None or rate is None:
        return failed(
            "privacy.mechanism",
            "this site shares its noise (privacy.mechanism=distributed), and the run that is expected does not",
            "Say what the coordinator announced: --expect strategy=fedsgd --expect strategy.noise_share=NUMBER; or set "
            "privacy.mechanism=local.",
        )
    counts, rounds = count_mechanism(privacy), sum(spec.stage(stage).rounds or 0 for stage in stages)
    price = cost_of(float(share), float(rate), privacy.honest_sites, rounds)
    units = None if account is None else unit_set(train, unit_secret(folder / FOLDER))
    own = (privacy.epsilon if privacy.budget is None else privacy.budget, privacy.budget_alone)
    after, budgets = [], [math.inf if budget is None else budget for budget in own]
    for alone, mechanism in ((False, price.honest), (True, price.alone)):
        parts = [mechanism, *([counts] if counts else [])]
        if account is not None and units is not None:
            after.append(account.spent(units, parts, alone=alone))
            kept = account.terms.budget_alone if alone else account.terms.budget
            budgets[alone] = budgets[alone] if kept is None else kept
        else:
            after.append(epsilon(parts, privacy.delta, privacy.accountant))
    held = [value <= budget + SLACK for value, budget in zip(after, budgets, strict=True)]
    words = (
        f"{rounds} rounds would make epsilon {after[0]:.2f} of {budgets[0]:g} if {privacy.honest_sites} others are "
        f"honest, and {after[1]:.2f} of {budgets[1]:g} if nobody else adds noise"
    )
    facts = {"after": after[0], "after_alone": after[1], "rounds": rounds}
    if all(held):
        return passed("privacy.budget", words, **facts)
    return failed(
        "privacy.budget", words, f"{GRANT} The second: `fed-diffmic ledger grant --alone`.", exit_code=5, **facts
    )


def check_shares_of_noise(privacy: PrivacyConfig, min_sites: int, sites: int) -> Check:
    """Whether a masked sum over all that this site knows holds what its claim counts on.

    Args:
        privacy: of the site.
        min_sites: ``policy.min_sites``.
        sites: this one and those that its people accepted.
    """
    name, honest = "privacy.honest_sites", privacy.honest_sites
    if sites <= min_sites:
        return warning(
            name,
            f"{sites - 1} other sites are accepted, and policy.min_sites is {min_sites}: no sum would be agreed to",
            "Accept the others first: `fed-diffmic provision peers`.",
        )
    try:
        check_company(privacy, min_sites, sites)
    except SiteError as error:
        return failed(name, error.detail, "Change it in site.yaml; docs/privacy.md says what it means.", exit_code=2)
    words = "nobody else is counted on" if not honest else f"{honest} honest others are counted on"
    return passed(name, f"{words}; masks over all {sites} sites bear {most_dishonest(sites)} that are not honest")


def _rounds(
    privacy: PrivacyConfig,
    spec: RunSpec,
    stages: Sequence[str],
    train: Examples,
    folder: Path,
    account: Account | None,
    rules: BudgetRules | None,
) -> Check:
    """What the expected rounds would cost the worst unit, in the order in which they come."""
    counts = count_mechanism(privacy)
    begun = [counts] if counts else []
    units = None if account is None else unit_set(train, unit_secret(folder / FOLDER))
    first = privacy.epsilon if privacy.budget is None else privacy.budget  # what a new ledger begins with
    budget = account.terms.budget if account is not None else math.inf if first is None else first
    spent = 0.0 if account is None or units is None else account.spent(units)
    most = shares(budget - spent, privacy, rules)
    plans = {stage: make_plan(privacy, spec, stage, train, most).mechanism for stage in stages}

    def cost(rounds: int) -> float:
        parts, left = list(begun), rounds
        for stage, plan in plans.items():
            taken = min(left, spec.stage(stage).rounds or 0)
            left -= taken
            if taken:
                parts.append(Mechanism(plan.sample_rate, plan.noise_multiplier, plan.steps * taken))
        if account is not None and units is not None:
            return account.spent(units, parts)
        return epsilon(parts, privacy.delta, privacy.accountant)

    planned = sum(spec.stage(stage).rounds or 0 for stage in stages)
    after = cost(planned)
    noise = ", ".join(f"{stage} {plan.noise_multiplier:.3g}" for stage, plan in plans.items())
    facts = {"spent": spent, "after": after, "budget": budget, "rounds": planned, "noise": noise}
    words = f"epsilon {spent:.2f} is spent of {budget:g}; {planned} rounds as expected would make it {after:.2f}"
    dearest = max((epsilon([plan], privacy.delta, privacy.accountant) for plan in plans.values()), default=0.0)
    if dearest > most.round + SLACK:
        share = f"one round by itself costs {dearest:.2f}, and may cost {most.round:.2f} (policy.budget.round_share)"
        return failed("privacy.budget", f"{words}: {share}", GRANT, exit_code=5, **facts, fits=0)
    if after <= budget + SLACK and after - spent > most.run + SLACK:
        share = f"a run may spend {most.run:.2f} (policy.budget.run_share)"
        return warning("privacy.budget", f"{words}: {share}; this site stops before the end", GRANT, **facts)
    if after <= budget + SLACK:
        return passed("privacy.budget", f"{words} (noise multipliers: {noise})", **facts)
    low, high = 0, planned
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget + SLACK else (low, middle)
    if low == 0:
        return failed("privacy.budget", f"{words}: not one round fits", GRANT, exit_code=5, **facts, fits=0)
    return warning("privacy.budget", f"{words}: {low} rounds fit, then this site stops", GRANT, **facts, fits=low)
