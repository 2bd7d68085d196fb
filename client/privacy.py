"""A site's private work: the ledger around each update, the noised counts, what a reply may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.site import Site
from fed_diffmic.algorithms.base import Algorithm, build_algorithm
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange.claims import claim_text
from fed_diffmic.exchange.failures import UNPROTECTED, SiteError
from fed_diffmic.files import private_folder, read_json, safe_name, write_json
from fed_diffmic.privacy.account import FOLDER
from fed_diffmic.privacy.dp_sgd import (
    Plan,
    count_mechanism,
    make_plan,
    noised_counts,
    private_update,
    unit_members,
)
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.ledger_lines import head_text
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.privacy.units import unit_set
from fed_diffmic.training.calibration import class_prior
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import exchanged
from fed_diffmic.training.update import LocalResult, LocalRound, SiteMemory

COUNTS = "counts"


def is_private(site: Site, stage: str | None = None) -> bool:
    """Whether the site protects its training, or that stage of it."""
    active = site.privacy.name == "dp_sgd"
    return active and (stage is None or stage in site.privacy.stages)


def check_stage(site: Site, stage: str) -> None:
    """Refuse to train a stage without privacy where the site trains with it.

    Raises:
        SiteError: the stage is not protected, and the site does not allow that.
    """
    if is_private(site) and not is_private(site, stage) and not site.privacy.allow_unprotected:
        raise SiteError(UNPROTECTED, f"privacy.stages does not name {stage}; privacy.allow_unprotected is false")


def ledger_folder(site: Site, spec: RunSpec) -> Path:
    """Where the ledger lies: a real site has one; a virtual site one for each arm, which is a consortium of its own."""
    return site.folder if site.real else private_folder(site.folder / "arms" / safe_name(spec.arm))


def open_ledger(site: Site, spec: RunSpec, echoed: str = "") -> Ledger:
    """The site's ledger, held until it is closed.

    Raises:
        LedgerError, MachineError: see :class:`fed_diffmic.privacy.ledger.Ledger`.
    """
    folder = ledger_folder(site, spec)
    return Ledger(folder, site.privacy, site.key(), echoed=echoed, witness=site.witness, rules=site.budget)


def private_round(
    site: Site,
    spec: RunSpec,
    echoed: str,
    module: StageModule,
    algorithm: Algorithm,
    at: LocalRound,
    memory: SiteMemory,
) -> tuple[LocalResult, str, str]:
    """One private update: planned, written into the ledger, computed, settled.

    Args:
        echoed: what the coordinator saw of the ledger last.
        module: with the round's weights in it.
        at: whose update it is, and of which round; its random draws are of the site's name alone, as its noise is.
        memory: what it builds on.

    Returns:
        the update, the ledger's head and the claim that go with it.

    Raises:
        BudgetError: the budget does not allow it; nothing was computed.
        SiteError: the algorithm reads training images outside the private update.
        LedgerError, ConfigError, MachineError, OutOfTimeError: see the rooms.
    """
    train, privacy, stage = site.data.train, site.privacy, module.stage
    if not algorithm.private:
        raise SiteError(UNPROTECTED, f"strategy={spec.strategy.name} reads training images outside the private update")
    check_private(module, exchanged(module))
    prior, weight = noised_prior(site, spec, echoed), public_weight(site, spec, echoed)
    at = replace(at, site=site.name)
    with open_ledger(site, spec, echoed) as ledger:
        units = unit_set(train, ledger.secret)
        plan = make_plan(privacy, spec, stage, train, ledger.allowance(units, spec.run_id))
        # Before the first step: an update that dies in the middle stays counted in full.
        number = ledger.reserve(
            units, plan.mechanism, run=spec.run_id, arm=spec.arm, stage=stage, round_index=at.round_index
        )
        result = private_update(module, train, algorithm, at, memory, privacy=privacy, plan=plan, prior=prior)
        ledger.settle(number, plan.steps)
        claim = claim_text(
            unit=ledger.terms.unit,
            delta=ledger.terms.delta,
            epsilon_run=ledger.spent(units, run=spec.run_id),
            epsilon_total=ledger.spent(units),
            budget=ledger.terms.budget,
            guarantee=privacy.test_seed is None,
            outside=outside(privacy),
        )
        return replace(result, num_examples=weight), head_text(ledger.head()), claim


def unprotected_round(site: Site, spec: RunSpec, stage: str, round_index: int, echoed: str) -> str:
    """Write down that a stage trains without privacy on these units; the ledger's head.

    A site that never had a ledger, as far as the coordinator knows too, and does not protect anything has nothing to
    write.
    """
    folder = ledger_folder(site, spec) if is_private(site) or site.real else site.folder
    if not is_private(site) and not echoed and not (folder / FOLDER).exists():
        return ""
    with open_ledger(site, spec, echoed) as ledger:
        units = unit_set(site.data.train, ledger.secret)
        ledger.unprotected(units, run=spec.run_id, arm=spec.arm, stage=stage, round_index=round_index)
        return head_text(ledger.head())


def outside(privacy: PrivacyConfig) -> list[str]:
    """What this configuration leaves outside the guarantee (:data:`fed_diffmic.exchange.claims.OUTSIDE`)."""
    found = []
    if privacy.validation == "listed":
        found.append("validation")
    if not privacy.nominal_units:
        found.append("units")
    if privacy.allow_unprotected:
        found.append("unprotected")
    return found


def private_facts(site: Site, spec: RunSpec, echoed: str = "") -> tuple[list[int], list[int]]:
    """What a private site says of its data: images (train, val, test) and training units of each class.

    The class counts are noised, once a run, or the same for all classes; the numbers of validation and test images
    leave only where metrics over them do.
    """
    train, privacy = site.data.train, site.privacy
    if count_mechanism(privacy) is None:
        share = max(1, privacy.weight // spec.num_classes)
        counts = [share] * spec.num_classes
    else:
        counts = [round(n) for n in counts_of_run(site, spec, echoed)]
    total, weight = privacy.nominal_units or len(unit_members(train, privacy.unit)), public_weight(site, spec, echoed)
    if spec.task == "multilabel":
        counts = [min(n, max(total, weight)) for n in counts]  # noise alone can make them more
    else:
        total = sum(counts)
    listed = privacy.validation == "listed"
    return [max(total, weight), len(site.data.val) if listed else 0, 0], counts


def public_weight(site: Site, spec: RunSpec, echoed: str = "") -> int:
    """What the site's updates weigh in the average, at least 1: nothing of it is a true count.

    Raises:
        ConfigError: ``privacy.weight=0`` and neither a public number of units nor counts that add up to one.
        BudgetError, LedgerError, MachineError: see the ledger.
    """
    privacy = site.privacy
    if privacy.weight or privacy.nominal_units:
        return privacy.weight or privacy.nominal_units
    if count_mechanism(privacy) is None or spec.task == "multilabel":
        raise ConfigError(
            "privacy.weight",
            0,
            "at least 1 where privacy.nominal_units is 0 and the classes' noised counts do not add up to the units",
            "Set privacy.nominal_units to a public, rounded number of units, or privacy.weight itself.",
        )
    return max(1, sum(round(n) for n in counts_of_run(site, spec, echoed)))


def noised_prior(site: Site, spec: RunSpec, echoed: str = "") -> np.ndarray | None:
    """Class shares ``(C,)`` inside (0, 1) for the balanced loss, from the noised counts; none where there are none."""
    if count_mechanism(site.privacy) is None:
        return None
    units = site.privacy.nominal_units or len(unit_members(site.data.train, site.privacy.unit))
    return class_prior(np.asarray(counts_of_run(site, spec, echoed)), units, spec.task)


def counts_of_run(site: Site, spec: RunSpec, echoed: str = "") -> list[float]:
    """The run's noised counts: drawn and charged once, kept and given again.

    Raises:
        BudgetError, LedgerError, MachineError: see the ledger.
    """
    folder = ledger_folder(site, spec)
    with open_ledger(site, spec, echoed) as ledger:
        path = private_folder(folder / FOLDER / COUNTS) / f"{safe_name(spec.run_id)}.json"
        units = unit_set(site.data.train, ledger.secret)
        if path.exists():
            kept: dict[str, Any] = read_json(path)
            if kept["units"] == units.name and len(kept["counts"]) == spec.num_classes:
                return [float(n) for n in kept["counts"]]
        mechanism = count_mechanism(site.privacy)
        if mechanism is None:
            raise ValueError("a run has noised counts only where privacy.count_noise is above zero")
        number = ledger.reserve(units, mechanism, run=spec.run_id, arm=spec.arm, stage="", round_index=0, what="counts")
        random = Randomness(site.privacy.test_seed, COUNTS, site.name, spec.run_id)
        counts = [float(n) for n in noised_counts(site.data.train, spec, site.privacy, random)]
        write_json(path, {"units": units.name, "counts": counts}, mode=0o600)
        ledger.settle(number, 1)
        return counts


def planned_batches(site: Site, spec: RunSpec, stage: str, train: Examples) -> int:
    """Steps of a pass over the units, for the policy's bounds."""
    if site.privacy.mechanism == "distributed":
        algorithm = build_algorithm(spec.strategy)
        # Any other is refused by name before anything is computed (client.distributed).
        return max(1, round(1.0 / algorithm.options.sample_rate)) if algorithm.gradient_sums else 1
    plan: Plan = make_plan(site.privacy, spec, stage, train)
    return max(1, round(1.0 / plan.sample_rate))
