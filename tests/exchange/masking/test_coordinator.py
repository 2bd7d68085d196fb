"""The coordinator: what a site should not have sent is that site's fault; wrong shares are found, or end the round."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking import keys
from fed_diffmic.exchange.masking.coordinator import MaskedSum, check_quorum
from fed_diffmic.exchange.masking.fixed_point import FixedPointError
from fed_diffmic.exchange.masking.session import BAD_SHARE, FEW, FORGED, OTHER, OUT_OF_TURN, STRANGER
from fed_diffmic.exchange.masking.shamir import PRIME
from tests.exchange.masking.parties import SESSION, Parties, enrolled, refused, words_of

A, B, C, D, E = (f"site-{index:02d}" for index in range(5))


def until_frozen(parties: Parties, lost: str = "") -> MaskedSum:
    """A sum whose words have come, but for one site's."""
    coordinator = parties.coordinator()
    for name, site in parties.sites.items():
        coordinator.advertised(name, site.advertise(SESSION, parties.names))
    group = coordinator.group()
    for name, site in parties.sites.items():
        coordinator.shared(name, site.share(SESSION, group))
    for name, sealed in coordinator.deliveries().items():
        if name != lost:
            coordinator.add(name, parties.sites[name].mask(SESSION, sealed, words_of(name)))
    coordinator.freeze()
    return coordinator


def until_shares(coordinator: MaskedSum, parties: Parties) -> dict[str, Any]:
    """What each site of the set would give."""
    text = coordinator.freeze()
    summed = [name for name in parties.names if coordinator.chosen and name in coordinator.chosen.summed]
    for name in summed:
        coordinator.signed(name, parties.sites[name].commit(SESSION, text))
    signatures = coordinator.signatures()
    return {name: parties.sites[name].unmask(SESSION, signatures) for name in summed}


def test_a_coordinator_that_was_ended_behind_the_set_goes_on_to_the_same_sum() -> None:
    """Killed before, between and behind the answers to the set: nothing is unmasked twice, and the sum is the one."""
    parties = Parties(5)
    first = until_frozen(parties, lost=E)
    kept, total = json.loads(json.dumps(first.to_json())), first.total.copy()
    until_shares(first, parties)  # it had asked everybody already, and kept no answer
    second = MaskedSum.resume(kept, total, parties.roster)
    for name, given in until_shares(second, parties).items():
        second.shares(name, given)
    assert second.unmask().tobytes() == parties.total([A, B, C, D]).tobytes()
    assert second.freeze() == first.freeze()
    with pytest.raises(FixedPointError):
        MaskedSum.resume(kept, total[1:], parties.roster)
    refused(OUT_OF_TURN, lambda: MaskedSum.resume({**kept, "set": kept["set"].replace(SESSION.digest, "0" * 64)}, total,
                                                  parties.roster))  # fmt: skip


def test_an_attempt_that_was_given_up_is_followed_by_one_with_the_right_sum() -> None:
    parties = Parties(3)
    parties.mask()  # the coordinator is ended with masked words in its memory, and nothing of them on disk
    total, chosen = parties.sum(replace(SESSION, attempt=2))
    assert total.tobytes() == parties.total(parties.names).tobytes() and len(chosen.summed) == 3


def test_wrong_shares_of_one_site_are_done_without() -> None:
    parties = Parties(5)
    coordinator = until_frozen(parties)
    given = until_shares(coordinator, parties)
    for name, wrong in ((A, 1), (B, 0)):
        seeds = {of: f"{(int(share, 16) + wrong) % PRIME:x}" for of, share in given[name]["seed"].items()}
        coordinator.shares(name, {**given[name], "seed": seeds})
    for name in (C, D, E):
        coordinator.shares(name, given[name])
    assert coordinator.unmask().tobytes() == parties.total(parties.names).tobytes()


@pytest.mark.parametrize("kind", ["seed", "mask"])
def test_wrong_shares_that_cannot_be_done_without_end_the_round_by_name(kind: str) -> None:
    parties = Parties(5)
    coordinator = until_frozen(parties, lost=E)
    for name, shares in until_shares(coordinator, parties).items():
        wrong = {of: f"{(int(share, 16) + (name == C)) % PRIME:x}" for of, share in shares[kind].items()}
        coordinator.shares(name, {**shares, kind: wrong})
    with pytest.raises(RoundError, match=f"masks do not fit what it advertised.*{A}, {B}, {C}, {D}") as caught:
        coordinator.unmask()
    assert (E if kind == "mask" else A) in caught.value.cause


def test_shares_that_are_not_those_of_the_set_are_refused() -> None:
    parties = Parties(5)
    coordinator = until_frozen(parties, lost=E)
    given = until_shares(coordinator, parties)[A]
    for wrong in (None, {}, {"seed": given["seed"]}, {**given, "more": {}}, {**given, "mask": {}},
                  {"seed": [], "mask": []},
                  {**given, "mask": {E: "x"}}, {**given, "mask": {E: 7}}, {**given, "mask": {E: f"{PRIME:x}"}},
                  {**given, "mask": {E: "-1"}}, {"seed": given["mask"], "mask": given["seed"]}):  # fmt: skip
        refused(BAD_SHARE, lambda w=wrong: coordinator.shares(A, w))
    refused(OUT_OF_TURN, lambda: coordinator.shares(E, given))
    coordinator.shares(A, given)


def test_messages_out_of_turn_or_by_others_change_nothing() -> None:
    parties = Parties(3)
    coordinator = parties.coordinator()
    signed = parties.advertise()
    stranger = keys.advertise(SESSION, "nobody", keys.Secrets.fresh(), enrolled("nobody"))
    refused(OUT_OF_TURN, lambda: coordinator.advertised("nobody", stranger))
    refused(FORGED, lambda: coordinator.advertised(A, stranger))
    refused(OTHER, lambda: coordinator.advertised(
        A, keys.advertise(replace(SESSION, attempt=9), A, keys.Secrets.fresh(), enrolled(A))))  # fmt: skip
    revoked = MaskedSum(SESSION, {name: key for name, key in parties.roster.items() if name != A}, parties.names)
    refused(STRANGER, lambda: revoked.advertised(A, signed[A]))
    refused(OUT_OF_TURN, lambda: coordinator.shared(A, {}))
    refused(OUT_OF_TURN, lambda: coordinator.signed(A, ""))
    refused(OUT_OF_TURN, lambda: coordinator.shares(A, {}))
    for name in parties.names:
        coordinator.advertised(name, signed[name])
    group = coordinator.group()
    refused(OUT_OF_TURN, lambda: coordinator.advertised(A, signed[A]))
    refused(BAD_SHARE, lambda: coordinator.shared(A, {}))
    refused(OUT_OF_TURN, lambda: coordinator.add(A, words_of(A)))
    for name in parties.names:
        coordinator.shared(name, parties.sites[name].share(SESSION, group))
    sealed = coordinator.deliveries()
    with pytest.raises(FixedPointError):
        coordinator.add(A, np.zeros(3, "<u8"))
    for name in parties.names:
        coordinator.add(name, parties.sites[name].mask(SESSION, sealed[name], words_of(name)))
        refused(OUT_OF_TURN, lambda n=name: coordinator.add(n, words_of(n)))  # nobody counts twice
    text = coordinator.freeze()
    refused(OUT_OF_TURN, lambda: coordinator.add(A, words_of(A)))
    refused(FORGED, lambda: coordinator.signed(A, keys.sign_set(text, enrolled(B))))
    with pytest.raises(RoundError, match="0 sites gave signatures of the set"):
        coordinator.signatures()
    with pytest.raises(RoundError, match="0 sites gave shares of masks"):
        coordinator.unmask()


def test_small_order_keys_give_no_secret() -> None:
    """A point of small order would make the pair's secret one that everybody knows."""
    refused(FORGED, lambda: keys.mask_key(bytes(31) + b"\x40", bytes(32), "g", A, B))


def test_a_quorum_below_the_threshold_is_named_before_the_start() -> None:
    check_quorum(7, 10)
    assert "6 of 10" in refused(FEW, lambda: check_quorum(6, 10))


@pytest.mark.parametrize("liar", [0, 8, 15])
def test_one_wrong_giver_of_many_is_done_without_whatever_its_name(liar: int) -> None:
    """Of sixteen sites eleven give a secret: in the order of names the first 3003 sets would all hold the first one."""
    parties = Parties(16)
    coordinator = until_frozen(parties)
    for name, given in until_shares(coordinator, parties).items():
        wrong = int(name == parties.names[liar])
        seeds = {of: f"{(int(share, 16) + wrong) % PRIME:x}" for of, share in given["seed"].items()}
        coordinator.shares(name, {**given, "seed": seeds})
    assert coordinator.unmask().tobytes() == parties.total(parties.names).tobytes()
