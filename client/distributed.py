"""A site's part in sums with shared noise: both costs into the ledger, then the words.

A share of noise protects a site's units only as long as its words are seen by nobody but in a sum with those of others.
So a real site gives them under masks alone, in a sum over as many others as it counts on. Virtual sites, which are one
process, may add them in the clear: the same whole numbers that masks are added to.

Each attempt at a round draws units and noise anew and is charged anew, before it is computed: whoever holds the
threshold of the shares of each attempt sees the words of each, against which the ledger's second number has to hold.
Words are kept under their masks only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from client.masked_turn import Turn, WordForm, turn_of
from client.privacy import is_private, noised_prior, open_ledger, outside
from client.requests import answer_header
from client.site import Site
from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.claims import Alone, claim_text
from fed_diffmic.exchange.failures import MASKING, UNSHARED, UNTRUSTED, SiteError
from fed_diffmic.exchange.masking.requests import MASKED, NOISED
from fed_diffmic.exchange.masking.shamir import most_dishonest, share_threshold
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.privacy.distributed.accounting import cost
from fed_diffmic.privacy.distributed.step import form_at_site, noised_words
from fed_diffmic.privacy.dp_sgd import check_delta, unit_members
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.ledger_lines import head_text
from fed_diffmic.privacy.units import UnitSet, unit_set
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.update import LocalRound


def check_mechanism(site: Site, algorithm: Algorithm, header: Mapping[str, Any]) -> None:
    """Refuse a round that the site's own mechanism is not for, before anything is computed.

    Raises:
        SiteError: noise is shared on one side only, a real site's words would be seen by themselves, or a masked change
            would have to be divided by what private training does not say.
    """
    shares = is_private(site, header["stage"]) and site.privacy.mechanism == "distributed"
    if shares != algorithm.gradient_sums:
        named = "needs strategy=fedsgd" if shares else "is not set, and the run's sums need every site's share of noise"
        raise SiteError(UNSHARED, f"privacy.mechanism=distributed {named}")
    if algorithm.divides and MASKED in header and is_private(site, header["stage"]):
        raise SiteError(MASKING, "private training says no number of steps, by which a masked change would be divided")
    if shares and site.real and MASKED not in header:
        raise SiteError(
            UNSHARED,
            "with its share of the noise alone this site's words leave under masks only: the run needs "
            "strategy.secure_aggregation=masked",
        )


def check_company(privacy: PrivacyConfig, min_sites: int, sites: int) -> None:
    """Whether a masked sum holds what the site's claim rests on: enough others, and masks that withstand the rest.

    The smallest set that such a sum can be over has ``max(min_sites, threshold - 1)`` others. Of these
    ``privacy.honest_sites`` are taken to be honest; the rest may be dishonest, and so many the masks have to bear.

    Args:
        privacy: of the site.
        min_sites: others without whom this site agrees to no set.
        sites: that share the sum's secrets, this one among them.

    Raises:
        SiteError: they do not.
    """
    honest, least = privacy.honest_sites, max(min_sites, share_threshold(sites) - 1)
    if honest > least:
        raise SiteError(
            UNTRUSTED,
            f"privacy.honest_sites is {honest}, and a sum may be over {least} others: raise policy.min_sites, or "
            "assume fewer",
        )
    if honest and least - honest > most_dishonest(sites):
        raise SiteError(
            UNTRUSTED,
            f"privacy.honest_sites is {honest} of {least} others at least, so {least - honest} may be dishonest; masks "
            f"over {sites} sites bear {most_dishonest(sites)}: assume {least - most_dishonest(sites)} or more, or 0",
        )


def noised_reply(site: Site, request: Payload, module: StageModule, algorithm: FedSgd, at: LocalRound) -> Payload:
    """The site's words of one round, with the claim that holds after it: planned, charged, computed, settled, masked.

    Args:
        request: to train; where it asks for a masked sum, the words are under masks.

    Raises:
        BudgetError: one of the two budgets does not allow it; nothing was computed.
        SiteError: the masked sum is not one that the words may go into; nothing was charged.
        LedgerError, ConfigError, MachineError, OutOfTimeError: see the rooms.
    """
    header, train, privacy, spec = request.header, site.data.train, site.privacy, module.spec
    echoed = header["ledger"]
    check_delta(privacy, max(1, len(unit_members(train, privacy.unit))))
    form = form_at_site(module, algorithm, at.round_index)
    turn: Turn | None = None
    room: int | None = None
    if MASKED in header:
        turn = turn_of(site, header, WordForm(form.digest, form.bits, 0, form.width))
        sites = turn.sites(anew=True)
        check_company(privacy, turn.part.min_sites, sites)
        room = form.room(sites)
    rate = algorithm.options.sample_rate
    price = cost(form, rate, privacy.honest_sites)
    prior = noised_prior(site, spec, echoed)
    with open_ledger(site, spec, echoed) as ledger:
        units = unit_set(train, ledger.secret)
        place = {"run": spec.run_id, "arm": spec.arm, "stage": module.stage}
        # Before anything is computed: a round that dies in the middle stays counted in full.
        number = ledger.reserve(units, price.honest, alone=price.alone, round_index=at.round_index, **place)
        at = replace(at, site=site.name)
        words = noised_words(module, train, at, form, rate, privacy=privacy, prior=prior, room=room)
        ledger.settle(number, 1)
        facts = {"state": "", "ledger": head_text(ledger.head()), "claim": _claim(ledger, units, privacy, spec)}
    plain = Payload("train.reply", {**answer_header(header), **facts}, {NOISED: signed(words)})
    return plain if turn is None else _under_masks(site, request, plain, turn, words)


def _claim(ledger: Ledger, units: UnitSet, privacy: PrivacyConfig, spec: RunSpec) -> str:
    """What holds after the round: with honest others, and alone."""
    totals = {apart: ledger.spent(units, alone=apart) for apart in (False, True)}
    of_run = {apart: ledger.spent(units, run=spec.run_id, alone=apart) for apart in (False, True)}
    return claim_text(
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


def _under_masks(site: Site, request: Payload, plain: Payload, turn: Turn, words: np.ndarray) -> Payload:
    """The answer whose one tensor is the words under masks, once the site's rules judged what is under them."""
    if site.judge is not None:
        site.judge(plain, request)
    return replace(plain, tensors={MASKED: turn.masked(words)})


def signed(words: np.ndarray) -> np.ndarray:
    """Words as the signed type that a payload carries, bit for bit."""
    bits = 8 * words.dtype.itemsize
    return words.view(f"<i{bits // 8}").astype(f"int{bits}", copy=False)
