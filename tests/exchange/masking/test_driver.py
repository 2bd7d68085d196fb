"""The whole protocol: the masked sum is the plain one, whoever is lost wherever; else the round fails by name."""

from __future__ import annotations

import math
from itertools import combinations, combinations_with_replacement
from random import Random

import numpy as np
import pytest

from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.driver import STEPS, masked_sum
from fed_diffmic.exchange.masking.fixed_point import FixedPoint
from fed_diffmic.exchange.masking.session import Session
from fed_diffmic.exchange.masking.shamir import share_threshold
from tests.exchange.masking.parties import SESSION, Parties, words_of

MASK = STEPS.index("mask")


def check(parties: Parties, last: dict[str, int], session: Session) -> bool:
    """One sum with each site lost before a step (``len(STEPS)``: never); whether it succeeded, as it should or not."""
    done = [[name for name, step in last.items() if step > index] for index in range(len(STEPS))]
    # Of all that there are, not of those who gave keys; shares of the latter's threshold give their secrets.
    need, give = share_threshold(parties.count), share_threshold(len(done[0]))
    summed = done[MASK]
    # A site deals with two others at least, so three are left; a group of three or more has a threshold of three.
    should = len(done[0]) >= 3 and all(len(names) >= need for names in done[1:-1]) and len(done[-1]) >= give
    coordinator = parties.coordinator(session)
    words = {name: words_of(name, session) for name in parties.names}
    try:
        total, chosen = masked_sum(
            coordinator, parties.sites, words, lambda site, step: last[site] <= STEPS.index(step)
        )
    except RoundError:
        assert not should, last
        return False
    assert should, last
    assert list(chosen.summed) == summed and total.tobytes() == parties.total(summed, session).tobytes()
    return True


def test_every_pattern_of_dropouts_of_five() -> None:
    """Every way to lose five sites at the five steps, up to their names, which are dealt anew for each."""
    parties, random, fates = Parties(5), Random(0), []
    patterns = list(combinations_with_replacement(range(len(STEPS) + 1), 5))
    for index, pattern in enumerate(patterns, start=1):
        steps = random.sample(pattern, 5)
        session = Session(**{**vars(SESSION), "round": index})
        fates.append(check(parties, dict(zip(parties.names, steps, strict=True)), session))
    # Four of five have to sign, whoever gave keys: one site may be lost, at one of the five steps; of four that gave
    # keys and signed one more before it gave shares.
    assert len(patterns) == 252 and sum(fates) == 1 + 5 + 1
    for lines in (store.lines for store in parties.stores.values()):
        assert all(kind in ("masked_set", "masked_shares") for kind, _ in lines)


@pytest.mark.parametrize("step", STEPS)
def test_each_single_site_and_pair_lost_at_a_step(step: str) -> None:
    """By name: which site is lost makes no difference, first or last in the order of masks."""
    parties, place, index = Parties(5), STEPS.index(step), 0
    for lost in (1, 2):
        for names in combinations(parties.names, lost):
            index += 1
            last = {name: place if name in names else len(STEPS) for name in parties.names}
            fine = check(parties, last, Session(**{**vars(SESSION), "round": index}))
            assert fine == (lost == 1)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_sum_is_the_plain_integer_sum(count: int, bits: int) -> None:
    form = FixedPoint.finest(count, 3.0, bits)
    session = Session(**{**vars(SESSION), "bits": bits, "fraction": form.fraction, "length": 1000})
    parties = Parties(count)
    rng = np.random.default_rng(count)
    values = {name: rng.uniform(-3, 3, 1000) for name in parties.names}
    words = {name: form.encode(value) for name, value in values.items()}
    total, chosen = masked_sum(parties.coordinator(session), parties.sites, words)
    assert chosen.summed == tuple(parties.names) and chosen.dropped == ()
    plain = sum(word.view(f"<i{bits // 8}").astype(object) for word in words.values())  # Python's integers
    assert total.view(f"<i{bits // 8}").tolist() == plain.tolist()
    exact = [math.fsum(column) for column in np.transpose(list(values.values()))]
    assert np.abs(form.decode(total) - exact).max() <= count * form.quantum / 2 + math.ulp(3.0 * count)


def test_a_pattern_of_ten() -> None:
    parties = Parties(10)
    lost = {"site-03": "advertise", "site-00": "mask", "site-09": "mask", "site-05": "unmask"}
    steps = {name: STEPS.index(lost[name]) if name in lost else len(STEPS) for name in parties.names}
    assert not check(parties, steps | {"site-07": 4}, SESSION)  # nine keys: seven must give shares, and six do
    assert check(parties, steps | {"site-05": 5}, Session(**{**vars(SESSION), "round": 2}))


def test_a_quorum_counts_besides_the_threshold() -> None:
    parties = Parties(5)
    words = {name: words_of(name) for name in parties.names}
    with pytest.raises(RoundError, match=r"4 sites gave masked updates, 5 are needed.*Missing: site-01"):
        masked_sum(
            parties.coordinator(least=5), parties.sites, words, lambda site, step: site == "site-01" and step == "mask"
        )


def test_a_site_that_was_not_there_is_no_part_of_the_sum() -> None:
    parties = Parties(4)
    del parties.sites["site-02"]
    total, chosen = parties.sum()
    assert chosen.summed == ("site-00", "site-01", "site-03")
    assert total.tobytes() == parties.total(chosen.summed).tobytes()


def test_two_sites_make_no_sum() -> None:
    parties = Parties(2)
    with pytest.raises(RoundError, match="0 sites gave keys"):
        masked_sum(MaskedSum(SESSION, parties.roster, parties.names), parties.sites, {})
