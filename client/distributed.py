"""A site's part in sums with shared noise: both costs into the ledger, then the words.

A share of noise protects a site's units only as long as its words are seen by nobody but in a sum with those of others.
So a real site gives them to nobody as long as masked sums do not take them; virtual sites, which are one process, add
them in the clear: the same whole numbers that masks would be added to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from client.privacy import is_private, noised_prior, open_ledger, outside
from client.requests import answer_header
from client.site import Site
from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.exchange.claims import Alone, claim_text
from fed_diffmic.exchange.failures import UNSHARED, SiteError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.privacy.distributed.accounting import cost
from fed_diffmic.privacy.distributed.step import form_at_site, noised_words
from fed_diffmic.privacy.dp_sgd import check_delta, unit_members
from fed_diffmic.privacy.ledger_lines import head_text
from fed_diffmic.privacy.units import unit_set
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.update import LocalRound

WORDS = "words"


def check_mechanism(site: Site, algorithm: Algorithm, header: Mapping[str, Any]) -> None:
    """Refuse a round that the site's own mechanism is not for, before anything is computed.

    Raises:
        SiteError: noise is shared on one side only, or a real site's words would be seen by themselves.
    """
    shares = is_private(site, header["stage"]) and site.privacy.mechanism == "distributed"
    if shares != algorithm.gradient_sums:
        named = "needs strategy=fedsgd" if shares else "is not set, and the run's sums need every site's share of noise"
        raise SiteError(UNSHARED, f"privacy.mechanism=distributed {named}")
    if shares and site.real:
        # Whatever the request says of masks: these words are not put under them yet.
        raise SiteError(
            UNSHARED,
            "privacy.mechanism=distributed is for simulations: with its share of the noise alone this site's words "
            "must not be seen by themselves, and masked sums do not take them yet",
        )


def noised_reply(
    site: Site, header: Mapping[str, Any], module: StageModule, algorithm: FedSgd, at: LocalRound
) -> Payload:
    """The site's words of one round, with the claim that holds after it: planned, charged, computed, settled.

    Raises:
        BudgetError: one of the two budgets does not allow it; nothing was computed.
        LedgerError, ConfigError, MachineError, OutOfTimeError: see the rooms.
    """
    train, privacy, spec, echoed = site.data.train, site.privacy, module.spec, header["ledger"]
    check_delta(privacy, max(1, len(unit_members(train, privacy.unit))))
    form = form_at_site(module, algorithm, at.round_index)
    rate = algorithm.options.sample_rate
    price = cost(form, rate, privacy.honest_sites)
    prior = noised_prior(site, spec, echoed)
    with open_ledger(site, spec, echoed) as ledger:
        units = unit_set(train, ledger.secret)
        place = {"run": spec.run_id, "arm": spec.arm, "stage": module.stage}
        # Before anything is computed: a round that dies in the middle stays counted in full.
        number = ledger.reserve(units, price.honest, alone=price.alone, round_index=at.round_index, **place)
        at = replace(at, site=site.name)
        words = noised_words(module, train, at, form, rate, privacy=privacy, prior=prior)
        ledger.settle(number, 1)
        totals = {apart: ledger.spent(units, alone=apart) for apart in (False, True)}
        of_run = {apart: ledger.spent(units, run=spec.run_id, alone=apart) for apart in (False, True)}
        claim = claim_text(
            unit=ledger.terms.unit,
            delta=ledger.terms.delta,
            epsilon_run=of_run[False],
            epsilon_total=totals[False],
            budget=ledger.terms.budget,
            guarantee=privacy.test_seed is None,
            # The sample rate is the run's; with several labels an image the number of units is told as it is.
            outside=[item for item in outside(privacy) if item != "units" or spec.task == "multilabel"],
            alone=Alone(privacy.honest_sites, of_run[True], totals[True], ledger.terms.budget_alone or 0.0),
        )
        facts = {"state": "", "ledger": head_text(ledger.head()), "claim": claim}
    return Payload("train.reply", {**answer_header(header), **facts}, {WORDS: signed(words)})


def signed(words: np.ndarray) -> np.ndarray:
    """Words as the signed type that a payload carries, bit for bit."""
    bits = 8 * words.dtype.itemsize
    return words.view(f"<i{bits // 8}").astype(f"int{bits}", copy=False)
