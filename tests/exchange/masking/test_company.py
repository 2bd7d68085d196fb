"""One set for a round among all sites, and one company for figures: coordinators that try for two.

Faults seen: a threshold counted over those asked alone, figures over two sets in a run.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking.company import participants, signers
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.driver import COMMIT, masked_sum
from fed_diffmic.exchange.masking.session import FEW, SECOND_SET, STRANGER, Session
from fed_diffmic.exchange.masking.shamir import most_dishonest, share_threshold
from fed_diffmic.exchange.masking.site import MaskingSite
from tests import toy
from tests.exchange.masking.parties import SESSION, Parties, enrolled, refused, words_of


def attempt(parties: Parties, company: list[str], session: Session, unsigned: str = "") -> bool:
    """Whether a coordinator has the sum over these sites opened; who is ``unsigned`` is not asked to sign."""
    try:
        masked_sum(
            MaskedSum(session, parties.roster, company),
            {name: parties.sites[name] for name in company},
            {name: words_of(name, session) for name in company},
            lambda site, step: (site, step) == (unsigned, COMMIT),
        )
    except RoundError:
        return False
    return True


@pytest.mark.parametrize("count", [7, 8, 10])
def test_a_site_is_in_one_opened_sum_of_a_round_whomever_the_coordinator_asks(count: int) -> None:
    """Groups that have the one site in common, as small as their own threshold allows: neither is opened."""
    parties = Parties(count)
    victim, half = parties.names[0], (count - 1) // 2
    groups = [[victim, *parties.names[1 : half + 1]], [victim, *parties.names[half + 1 :]]]
    assert all(len(group) >= share_threshold(len(group)) + 1 for group in groups)
    for number, company in enumerate(groups, start=1):
        assert not attempt(parties, company, replace(SESSION, attempt=number), victim)


@pytest.mark.parametrize("count", [7, 10])
def test_a_second_group_of_enough_sites_is_refused_by_those_who_signed(count: int) -> None:
    """The largest sets that differ: whoever signed the first one signs no second, so it lacks signatures."""
    parties = Parties(count)
    need = share_threshold(count)
    first, second = parties.names[:need], [parties.names[0], *parties.names[count - need + 1 :]]
    assert attempt(parties, first, SESSION)
    assert not attempt(parties, second, replace(SESSION, attempt=2), parties.names[0])


@pytest.mark.parametrize("among", range(3, 51))
def test_two_sets_of_so_many_signers_share_an_honest_one(among: int) -> None:
    """Pigeonhole, by counting: for every group, and for small numbers by trying every pair of sets."""
    need = signers(3, among)
    assert need == share_threshold(among) and 2 * need - among > most_dishonest(among) >= among // 3 - 1
    if among <= 8:
        sets = [set(one) for one in combinations(range(among), need)]
        assert min(len(one & two) for one in sets for two in sets) == 2 * need - among


def test_a_share_is_given_for_signatures_of_enough_of_all_not_of_the_group() -> None:
    """At the last step too: a set that was signed is opened for no fewer."""
    parties = Parties(7)
    parties.mask()
    text = parties.set_of(parties.names)
    signed = {name: parties.sites[name].commit(SESSION, text) for name in parties.names}
    given = dict(list(signed.items())[:4])
    refused(FEW, lambda: parties.sites["site-06"].unmask(SESSION, given))
    parties.sites["site-06"].unmask(SESSION, dict(list(signed.items())[:5]))


def test_who_is_not_of_the_run_counts_as_a_stranger_and_raises_no_number() -> None:
    """A site that accepted seven holds a run of three of them to these."""
    parties = Parties(7)
    names = parties.names[:3]
    for name in names:
        parties.sites[name] = MaskingSite(name, enrolled(name), parties.roster, parties.stores[name], among=names)
    refused(STRANGER, lambda: parties.sites[names[0]].advertise(SESSION, parties.names[:4]))
    assert attempt(parties, names, SESSION)


def test_figures_go_into_sums_over_one_set_in_a_run() -> None:
    """In another round, another stage or for the calibration: the difference would be one site's own figures."""
    parties = Parties(5)
    first = replace(SESSION, purpose="evaluate")
    assert attempt(parties, parties.names, first)
    fewer = parties.names[:4]
    for other in (
        replace(first, round=2),
        replace(first, stage="diffusion"),
        replace(first, purpose="calibrate", round=0),
    ):
        assert not attempt(parties, fewer, other)
        assert attempt(parties, parties.names, replace(other, attempt=2))
    assert attempt(parties, fewer, replace(first, run="another"))  # said in the docs: a run is agreed to by itself
    assert attempt(parties, fewer, replace(SESSION, round=2))  # updates: sets may differ from round to round


def test_the_second_set_of_figures_is_refused_though_the_first_was_never_opened() -> None:
    """It is remembered when it is signed, and outlives the process."""
    parties, first = Parties(5), replace(SESSION, purpose="evaluate")
    again, fewer = replace(first, round=2), parties.names[:4]
    parties.mask(first)
    parties.sites["site-00"].commit(first, parties.set_of(parties.names, session=first))
    site = parties.restarted("site-00")
    parties.mask(again)
    text = parties.set_of(fewer, session=again)
    refused(SECOND_SET, lambda: site.commit(again, text))
    assert parties.sites["site-01"].commit(again, text)  # who signed nothing yet has no company


def test_a_site_that_died_between_its_set_and_its_company_has_one_all_the_same() -> None:
    """Its record is made when it is asked again, at either step, before anything leaves."""
    parties, first = Parties(5), replace(SESSION, purpose="evaluate")
    later, site = replace(first, purpose="calibrate", round=0), parties.sites["site-00"]
    parties.mask(first)
    text = parties.set_of(parties.names, session=first)
    signed = {name: parties.sites[name].commit(first, text) for name in parties.names}
    place = ("run", "federated", "", "company")
    kept = parties.stores["site-00"].states.pop(place)  # as if it had been killed before it wrote that
    parties.restarted("site-00").unmask(first, signed)
    assert parties.stores["site-00"].states[place] == kept
    parties.stores["site-00"].states.pop(place)
    parties.mask(later)
    site.commit(later, parties.set_of(parties.names[:4], session=later))  # and went on with another set
    refused(SECOND_SET, lambda: site.commit(first, text))
    refused(SECOND_SET, lambda: site.unmask(first, signed))


def test_everybody_draws_the_same_participants() -> None:
    spec = toy.toy_spec(strategy=StrategyConfig(participation=0.5))
    everyone = [f"s{number}" for number in range(10)]
    drawn = participants(spec, everyone, "guidance", 1)
    assert drawn is not None and len(drawn) == 5 and drawn == participants(spec, reversed(everyone), "guidance", 1)
    assert participants(toy.toy_spec(), everyone, "guidance", 1) is None
