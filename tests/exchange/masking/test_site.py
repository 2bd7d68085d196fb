"""A site's own rules: whatever a coordinator asks, one sum over enough sites is all that it can get."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fed_diffmic.exchange.masking import keys
from fed_diffmic.exchange.masking.driver import masked_sum
from fed_diffmic.exchange.masking.session import (
    BAD_SHARE,
    FEW,
    FORGED,
    MALFORMED,
    OTHER,
    OUT_OF_TURN,
    SECOND_SET,
    STALE,
    STRANGER,
    TOO_LARGE,
    Session,
    SurvivorSet,
)
from fed_diffmic.exchange.masking.shamir import PRIME
from fed_diffmic.exchange.masking.shares import WIDTH, SharePair, seal_shares
from fed_diffmic.exchange.seal import Signed
from tests.exchange.masking.parties import SESSION, Parties, enrolled, refused, words_of

A, B, C, D, E = (f"site-{index:02d}" for index in range(5))
AGAIN = replace(SESSION, attempt=2)


def signatures(parties: Parties, text: str, names: Any = None) -> dict[str, str]:
    return {name: keys.sign_set(text, enrolled(name)) for name in names or parties.names}


# ---- company ---------------------------------------------------------------------------------
def test_a_strangers_key_is_refused() -> None:
    """A coordinator cannot make up a site: neither one outside the roster nor one of it under a key of its own."""
    parties = Parties(4)
    site, advertised = parties.sites[A], parties.advertise()
    refused(STRANGER, lambda: site.advertise(replace(SESSION, round=2), [*parties.names, "nobody"]))
    made_up = keys.advertise(SESSION, "nobody", keys.Secrets.fresh(), enrolled("nobody"))
    refused(STRANGER, lambda: site.share(SESSION, {**advertised, "nobody": made_up}))
    impostor = keys.advertise(SESSION, D, keys.Secrets.fresh(), enrolled("nobody"))
    refused(FORGED, lambda: site.share(SESSION, {**advertised, D: impostor}))
    assert set(site.share(SESSION, advertised)) == {B, C, D}


def test_a_key_of_another_round_attempt_or_model_is_refused() -> None:
    for other in (AGAIN, replace(SESSION, round=2), replace(SESSION, task="cd" * 32), replace(SESSION, run="x"),
                  replace(SESSION, stage="diffusion"), replace(SESSION, purpose="evaluate"),
                  replace(SESSION, arm="pooled")):  # fmt: skip
        parties = Parties(3)
        advertised, site = parties.advertise(), parties.sites[A]
        replayed = keys.advertise(other, B, keys.Secrets.fresh(), enrolled(B))
        refused(OTHER, lambda s=site, a={**advertised, B: replayed}: s.share(SESSION, a))
        refused(FORGED, lambda s=site, a={**advertised, C: advertised[B]}: s.share(SESSION, a))
        mine = keys.advertise(SESSION, A, keys.Secrets.fresh(), enrolled(A))
        refused(OTHER, lambda s=site, a={**advertised, A: mine}: s.share(SESSION, a))


def test_a_set_of_two_is_refused_at_each_step() -> None:
    parties = Parties(5)
    site = parties.sites[A]
    refused(FEW, lambda: site.advertise(SESSION, [A, B]))
    advertised, sealed = parties.share()
    refused(FEW, lambda: site.mask(SESSION, {B: sealed[A][B]}, words_of(A)))
    site.mask(SESSION, sealed[A], words_of(A))
    refused(FEW, lambda: site.commit(SESSION, parties.set_of([A, B])))
    other = Parties(3)
    keys_of_three = other.advertise()
    refused(FEW, lambda: other.sites[A].share(SESSION, {A: keys_of_three[A], B: keys_of_three[B]}))
    assert advertised


def test_min_sites_is_the_sites_own() -> None:
    """Four in a sum are enough for a site that asks for three others, and not for one that asks for four."""
    for least, count, fine in ((3, 4, True), (4, 4, False), (4, 5, True)):
        parties = Parties(count, min_sites=least)
        if fine:
            assert parties.sites[A].advertise(SESSION, parties.names)
        else:
            refused(FEW, lambda p=parties: p.sites[A].advertise(SESSION, p.names))
    parties = Parties(5, min_sites=4)
    parties.mask()
    refused(FEW, lambda: parties.sites[A].commit(SESSION, parties.set_of([A, B, C, D])))
    parties.sites[A].commit(SESSION, parties.set_of(parties.names))


def test_a_company_without_the_site_itself_is_refused() -> None:
    parties = Parties(4)
    refused(STRANGER, lambda: parties.sites[A].advertise(SESSION, [B, C, D]))
    parties.mask()
    refused(STRANGER, lambda: parties.sites[A].commit(SESSION, parties.set_of([B, C, D])))


def test_a_peer_that_people_take_out_after_the_set_was_signed_is_given_no_sum() -> None:
    """Shares are the last thing that can be kept back; without its signature there are still enough."""
    parties = Parties(4)
    parties.mask()
    text = parties.set_of(parties.names)
    signatures = {name: parties.sites[name].commit(SESSION, text) for name in (A, B, C)}
    del parties.roster[D]
    refused(STRANGER, lambda: parties.restarted(A).unmask(SESSION, signatures))


# ---- one set for a round -----------------------------------------------------------------------
def test_a_second_set_of_the_round_is_refused_whatever_the_attempt() -> None:
    parties = Parties(5)
    site = parties.sites[A]
    parties.mask()
    text = parties.set_of(parties.names)
    first = site.commit(SESSION, text)
    assert keys.signed_set(text, first, parties.roster[A])
    refused(SECOND_SET, lambda: site.commit(SESSION, parties.set_of([A, B, C, D])))
    refused(SECOND_SET, lambda: site.advertise(AGAIN, parties.names))
    refused(SECOND_SET, lambda: parties.restarted(A).advertise(AGAIN, parties.names))
    refused(SECOND_SET, lambda: parties.sites[A].commit(SESSION, parties.set_of([A, B, C, D])))
    refused(STALE, lambda: parties.sites[A].commit(AGAIN, text))
    assert keys.signed_set(
        text, parties.sites[A].commit(SESSION, text), parties.roster[A]
    )  # the same again is the same
    assert parties.sites[A].advertise(replace(SESSION, round=2), parties.names)
    refused(STALE, lambda: parties.sites[A].advertise(SESSION, parties.names))  # and the round before is over for good
    refused(STALE, lambda: parties.sites[A].advertise(AGAIN, parties.names))


def test_a_new_attempt_before_the_set_has_new_keys_masks_and_shares() -> None:
    parties = Parties(3)
    first, masked = parties.share()[0], parties.mask()
    again, second = parties.advertise(AGAIN), parties.mask(AGAIN)
    for name in parties.names:
        one = keys.read_advertisement(first[name], SESSION, name, parties.roster[name])
        two = keys.read_advertisement(again[name], AGAIN, name, parties.roster[name])
        assert one.channel != two.channel and one.mask != two.mask and one.seed != two.seed
        assert not (masked[name] == second[name]).any()
    site = parties.sites[A]
    refused(STALE, lambda: site.advertise(SESSION, parties.names))  # the attempt before it is dead
    refused(STALE, lambda: site.share(SESSION, first))
    refused(STALE, lambda: site.commit(SESSION, parties.set_of(parties.names, session=AGAIN)))
    old = parties.set_of(parties.names, session=AGAIN).replace(AGAIN.digest, SESSION.digest)
    refused(OTHER, lambda: site.commit(AGAIN, old))


def test_both_kinds_of_share_of_one_site_are_refused() -> None:
    parties = Parties(4)
    parties.mask()
    both = parties.set_of(parties.names, dropped=(D,))
    assert "both kinds" in refused(FORGED, lambda: parties.sites[A].commit(SESSION, both))
    parties.sites[A].commit(SESSION, parties.set_of(parties.names))
    given = parties.sites[A].unmask(SESSION, signatures(parties, parties.set_of(parties.names)))
    assert set(given["seed"]) == set(parties.names) and given["mask"] == {}


def test_a_set_that_does_not_account_for_everyone_is_refused() -> None:
    parties = Parties(5)
    parties.mask()
    site = parties.sites[A]
    refused(OTHER, lambda: site.commit(SESSION, parties.set_of([A, B, C, D], dropped=())))
    refused(OTHER, lambda: site.commit(SESSION, parties.set_of(parties.names, dropped=("site-99",))))
    refused(OTHER, lambda: site.commit(SESSION, parties.set_of(parties.names, group="0" * 64)))
    refused(OTHER, lambda: site.commit(SESSION, parties.set_of(parties.names).replace(SESSION.digest, "0" * 64)))
    refused(FEW, lambda: site.commit(SESSION, parties.set_of([A, B, C])))  # five shared: four must be in it
    for text in ("", "{}", parties.set_of(parties.names) + " ", "[" * 9000):
        refused(MALFORMED, lambda t=text: site.commit(SESSION, t))
    assert site.commit(SESSION, parties.set_of([A, B, C, D]))


# ---- a coordinator that tells different stories ------------------------------------------------
def test_different_sets_at_different_sites_unmask_nothing() -> None:
    parties = Parties(5)
    parties.mask()
    everyone, without = parties.set_of(parties.names), parties.set_of([A, B, C, D])
    signed = {A: parties.sites[A].commit(SESSION, without)}
    signed |= {name: parties.sites[name].commit(SESSION, everyone) for name in (B, C, D, E)}
    refused(FORGED, lambda: parties.sites[A].unmask(SESSION, signed))
    refused(FORGED, lambda: parties.sites[B].unmask(SESSION, signed))
    refused(FEW, lambda: parties.sites[A].unmask(SESSION, {A: signed[A]}))
    few = {name: signed[name] for name in (B, C, D)}
    refused(FEW, lambda: parties.sites[B].unmask(SESSION, few))
    forged = few | {E: keys.sign_set(everyone, enrolled("nobody"))}
    refused(FORGED, lambda: parties.sites[B].unmask(SESSION, forged))
    stranger = few | {"nobody": keys.sign_set(everyone, enrolled("nobody"))}
    refused(FORGED, lambda: parties.sites[B].unmask(SESSION, stranger))
    assert parties.sites[B].unmask(SESSION, few | {E: signed[E]})["mask"] == {}


def test_a_signature_by_a_site_that_is_out_of_the_set_does_not_count() -> None:
    parties = Parties(5)
    parties.mask()
    text = parties.set_of([A, B, C, D])
    parties.sites[A].commit(SESSION, text)
    refused(FORGED, lambda: parties.sites[A].unmask(SESSION, signatures(parties, text, [A, B, C, E])))
    assert parties.sites[A].unmask(SESSION, signatures(parties, text, [A, B, C, D]))["mask"].keys() == {E}


def test_different_groups_at_different_sites_open_no_share() -> None:
    """A group without E for A alone: what the others sealed among five does not open among four."""
    parties = Parties(5)
    advertised = parties.advertise()
    four = {name: signed for name, signed in advertised.items() if name != E}
    sealed = {name: parties.sites[name].share(SESSION, four if name == A else advertised) for name in parties.names}
    came = {name: sealed[name][A] for name in (B, C, D)}
    refused(BAD_SHARE, lambda: parties.sites[A].mask(SESSION, came, words_of(A)))
    refused(BAD_SHARE, lambda: parties.sites[B].mask(SESSION, {n: sealed[n][B] for n in (A, C, D, E)}, words_of(B)))
    refused(OTHER, lambda: parties.sites[A].share(SESSION, advertised))  # nor a second time with the right one


def test_sites_that_were_given_different_models_have_nothing_in_common() -> None:
    """Pasquini et al. 2022: another model at the victim would leave its update alone in the sum."""
    parties, other = Parties(3), replace(SESSION, task="cd" * 32)
    advertised = {name: parties.sites[name].advertise(other if name == A else SESSION, parties.names)
                  for name in parties.names}  # fmt: skip
    refused(OTHER, lambda: parties.sites[A].share(other, advertised))
    refused(OTHER, lambda: parties.sites[B].share(SESSION, advertised))
    refused(OTHER, lambda: parties.sites[A].share(SESSION, advertised))
    refused(OTHER, lambda: parties.sites[A].advertise(SESSION, parties.names))


# ---- shares and words ---------------------------------------------------------------------------
def test_a_share_opens_for_its_recipient_alone() -> None:
    parties = Parties(3)
    _, sealed = parties.share()
    site = parties.sites[A]
    for wrong in (sealed[A][C], sealed[C][B], sealed[A][B][:-4] + "AAA=", "", "x", 7):
        refused(BAD_SHARE, lambda w=wrong: site.mask(SESSION, {**sealed[A], B: w}, words_of(A)))
    assert len(site.mask(SESSION, sealed[A], words_of(A))) == SESSION.length


def test_a_second_input_under_the_same_masks_is_refused() -> None:
    """The difference of two masked inputs would be the difference of the inputs."""
    parties = Parties(4)
    _, sealed = parties.share()
    site, words = parties.sites[A], words_of(A)
    masked = site.mask(SESSION, sealed[A], words)
    assert masked.tobytes() == parties.restarted(A).mask(SESSION, sealed[A], words).tobytes()
    moved = words.copy()
    moved[0] += np.uint64(1)
    refused(OTHER, lambda: parties.sites[A].mask(SESSION, sealed[A], moved))
    fewer = {name: sealed[A][name] for name in (B, C)}
    refused(OTHER, lambda: parties.sites[A].mask(SESSION, fewer, words))  # nor the same under fewer masks


def test_a_site_without_words_lets_nobody_read_the_sum_of_the_others() -> None:
    """Zeros, or anything that one knows, would be taken away: three of four sites without words leave the fourth's."""
    parties = Parties(4)
    words: Any = {name: words_of(A) if name == A else None for name in parties.names}
    total, chosen = masked_sum(parties.coordinator(), parties.sites, words)
    assert chosen.summed == tuple(parties.names)
    rest = (total - words[A]).view("<i8")
    assert np.abs(rest.astype(float)).min() > 2**40 and len(set(rest.tolist())) == SESSION.length


def test_a_site_without_words_says_so_once() -> None:
    parties = Parties(4)
    _, sealed = parties.share()
    masked = parties.sites[A].mask(SESSION, sealed[A], None)
    assert masked.tobytes() == parties.restarted(A).mask(SESSION, sealed[A], None).tobytes()
    refused(OTHER, lambda: parties.sites[A].mask(SESSION, sealed[A], words_of(A)))
    refused(OTHER, lambda: parties.sites[A].mask(SESSION, sealed[A], np.zeros(SESSION.length, "<u8")))


def test_words_that_leave_no_room_are_refused() -> None:
    parties = Parties(3)
    _, sealed = parties.share()
    large = np.zeros(SESSION.length, "<u8")
    large[3] = 2**63 // 3 + 1
    refused(TOO_LARGE, lambda: parties.sites[A].mask(SESSION, sealed[A], large))
    for wrong in (np.zeros(SESSION.length + 1, "<u8"), np.zeros(SESSION.length, "<u4")):
        refused(OTHER, lambda w=wrong: parties.sites[A].mask(SESSION, sealed[A], w))


def test_a_step_out_of_turn_is_refused() -> None:
    parties = Parties(3)
    site, text = parties.sites[A], SurvivorSet(SESSION.digest, "0" * 64, (A, B, C), ()).text
    refused(OUT_OF_TURN, lambda: site.share(SESSION, {}))
    advertised = parties.advertise()
    refused(OUT_OF_TURN, lambda: site.mask(SESSION, {}, words_of(A)))
    refused(OUT_OF_TURN, lambda: site.commit(SESSION, text))
    sealed = {name: parties.sites[name].share(SESSION, advertised) for name in parties.names}
    refused(OUT_OF_TURN, lambda: site.unmask(SESSION, {}))
    came = {name: sealed[name][A] for name in (B, C)}
    site.mask(SESSION, came, words_of(A))
    site.commit(SESSION, parties.set_of(parties.names))
    refused(OUT_OF_TURN, lambda: site.mask(SESSION, came, words_of(A)))


def test_after_the_set_a_site_cannot_compute_its_masks_again() -> None:
    """Its secrets are gone from its memory; what it holds of the others' is what it may give."""
    parties = Parties(3)
    parties.mask()
    before = parties.stores[A].load(SESSION.place)
    parties.sites[A].commit(SESSION, parties.set_of(parties.names))
    after = parties.stores[A].load(SESSION.place)
    assert before and after and before["secrets"] and after["secrets"] == {}
    assert not any(secret in parties.stores[A].states[SESSION.place] for secret in before["secrets"].values())


def test_the_log_names_the_set_before_a_share_is_given() -> None:
    parties = Parties(3)
    parties.mask()
    text = parties.set_of(parties.names)
    store = parties.stores[A]
    parties.sites[A].commit(SESSION, text)
    assert [kind for kind, _ in store.lines] == ["masked_set"]
    store.lines.clear()  # as if the process had ended between the file and the line
    parties.sites[A].unmask(SESSION, signatures(parties, text))
    facts = {"run": "run", "arm": "federated", "stage": "guidance", "purpose": "train", "round": 1, "attempt": 1}
    assert store.lines == [("masked_shares", {**facts, "set": text})]


# ---- what masked words look like ------------------------------------------------------------------
@pytest.mark.parametrize("bits", [32, 64])
def test_masked_words_pass_a_chi_square_test_and_do_not_depend_on_the_input(bits: int) -> None:
    session = replace(SESSION, bits=bits, length=1 << 15)
    inputs = {
        "zeros": np.zeros(session.length, f"<u{bits // 8}"),
        "large": words_of(A, session, low=2 ** (bits - 4), high=2 ** (bits - 3)),
    }
    seen = {}
    for kind, words in inputs.items():
        parties = Parties(3)
        _, sealed = parties.share(session)
        seen[kind] = parties.sites[A].mask(session, sealed[A], words)
        counts = np.bincount(seen[kind].view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-5
        if words.any():
            correlation = np.corrcoef(seen[kind].astype(float), words.astype(float))[0, 1]
            assert abs(correlation) < 5 / session.length**0.5
    tables = [np.bincount(masked.view(np.uint8), minlength=256) for masked in seen.values()]
    assert stats.chi2_contingency(tables).pvalue > 1e-5


def test_no_two_sites_masks_are_enough_to_unmask_a_third() -> None:
    """All but the victim work with the coordinator: the own mask is left, and only its seed takes it off."""
    parties = Parties(3)
    masked = parties.mask()
    state = parties.stores[B].load(SESSION.place), parties.stores[C].load(SESSION.place)
    held = [s["held"][A] for s in state if s]
    rest = masked[A] - words_of(A)
    assert len(held) == 2 < 3 and rest.any()  # two shares of three that are needed


def test_session_texts_are_read_strictly() -> None:
    assert Session.parse(SESSION.text) == SESSION
    for wrong in (
        {"round": -1},
        {"attempt": 0},
        {"length": 0},
        {"bits": 16},
        {"purpose": "again"},
        {"run": ""},
        {"round": True},
    ):
        refused(MALFORMED, lambda w=wrong: replace(SESSION, **w))
    for text in (SESSION.text + " ", SESSION.text.replace('"v":1', '"v":2'), "NaN", '{"v":NaN}', "[]"):
        refused(MALFORMED, lambda t=text: Session.parse(t))
    one = SurvivorSet("a", "b", (A, B), (C,))
    assert SurvivorSet.parse(one.text) == one
    for wrong in ({"summed": (B, A)}, {"summed": (A, A)}, {"dropped": ("",)}):
        refused(MALFORMED, lambda w=wrong: SurvivorSet.parse(replace(one, **w).text))


def test_a_signed_set_stands_for_no_advertisement() -> None:
    signed = keys.advertise(SESSION, A, keys.Secrets.fresh(), enrolled(A))
    assert not keys.signed_set(signed.text, signed.signature, enrolled(A).public_key())
    as_set = Signed(signed.text, keys.sign_set(signed.text, enrolled(A)))
    refused(FORGED, lambda: keys.read_advertisement(as_set, SESSION, A, enrolled(A).public_key()))


def test_what_is_no_share_is_refused_before_it_could_be_given_on() -> None:
    """Given on, it would be a fault of whoever gives it, behind a set that has no other attempt."""
    parties = Parties(4)
    keys_of, sealed = parties.share()
    group = {
        name: keys.read_advertisement(keys_of[name], SESSION, name, parties.roster[name]) for name in parties.names
    }
    digest = keys.group_digest(SESSION, {name: one.signed.text for name, one in group.items()})
    state = parties.stores[B].load(SESSION.place)
    assert state is not None
    key = keys.seal_key(bytes.fromhex(state["secrets"]["channel"]), group[A].channel, digest, B, A)
    for pair in (SharePair(PRIME, 1), SharePair(1, 2 ** (8 * WIDTH) - 1)):
        made_up = seal_shares(pair, key, group=digest, sender=B, recipient=A)
        said = refused(BAD_SHARE, lambda m=made_up: parties.sites[A].mask(SESSION, {**sealed[A], B: m}, words_of(A)))
        assert B in said
    fits = seal_shares(SharePair(PRIME - 1, 0), key, group=digest, sender=B, recipient=A)
    assert parties.sites[A].mask(SESSION, {**sealed[A], B: fits}, words_of(A)).size == SESSION.length
