"""How many dishonest sites masks bear: with one more, a coordinator that lies about the set opens one site's words.

The attack is made here in full, against sites that keep every rule: it says what ``most_dishonest`` has to be.
"""

from __future__ import annotations

import numpy as np
import pytest

from fed_diffmic.exchange.masking import keys
from fed_diffmic.exchange.masking.session import MaskingError, SurvivorSet, places_of
from fed_diffmic.exchange.masking.shamir import ShareError, join, most_dishonest, weights_at_zero
from fed_diffmic.exchange.masking.stream import apply_masks
from fed_diffmic.exchange.seal import Signed
from tests.exchange.masking.parties import SESSION, Parties, enrolled, words_of


def opened(sites: int, dishonest: int) -> np.ndarray | None:
    """The first site's words, if the last ``dishonest`` ones and the coordinator can open them; else none.

    Half of the honest are told that the others were lost, and the others that the first half was.
    """
    parties = Parties(sites)
    masked = parties.mask()
    honest, bad = parties.names[: sites - dishonest], parties.names[sites - dishonest :]
    half = (len(honest) + 1) // 2
    victim, told = honest[0], [honest[:half], honest[half:]]
    states = {name: parties.stores[name].load(SESSION.place) or {} for name in parties.names}
    seeds, secrets = ({name: states[name]["held"][victim][kind] for name in bad} for kind in (0, 1))
    advertised = states[victim]["group"]
    group = ""
    for some, kind, found in ((told[0], "seed", seeds), (told[1], "mask", secrets)):
        text = parties.set_of([*bad, *some])
        group = SurvivorSet.parse(text).group
        try:
            signed = {name: parties.sites[name].commit(SESSION, text) for name in some}
            signed |= {name: keys.sign_set(text, enrolled(name)) for name in bad}
            given = {name: parties.sites[name].unmask(SESSION, signed) for name in some}
        except MaskingError:
            continue
        found |= {name: shares[kind][victim] for name, shares in given.items()}
    try:
        seed, secret = (secret_of(parties, found) for found in (seeds, secrets))
    except ShareError:
        return None
    if keys.public_of(secret) != keys.parse_advertisement(_signed(advertised[victim]), SESSION, victim).mask:
        return None
    words = masked[victim].copy()
    pairs = {
        name: keys.mask_key(secret, keys.parse_advertisement(_signed(text), SESSION, name).mask, group, victim, name)
        for name, text in advertised.items()
        if name != victim
    }
    apply_masks(words, [], [keys.self_key(seed, group, victim), *pairs.values()])  # the victim is the first by name
    return words


def secret_of(parties: Parties, shares: dict[str, str]) -> bytes:
    """From all shares that there are: fewer than the threshold give another number, or none."""
    places = places_of(parties.names)
    found = {places[name]: int(share, 16) for name, share in shares.items()}
    return join(found, weights_at_zero(found))


def _signed(text: str) -> Signed:
    return Signed(text, "")


@pytest.mark.parametrize("sites", [4, 5, 6, 7, 8])
def test_so_many_dishonest_sites_learn_nothing_and_one_more_opens_a_sites_words(sites: int) -> None:
    most = most_dishonest(sites)
    assert opened(sites, most) is None
    words = opened(sites, most + 1)
    assert words is not None and words.tobytes() == words_of("site-00").tobytes()
