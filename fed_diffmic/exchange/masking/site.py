"""A site's part in a masked sum: five steps, each refused unless the site's own rules hold.

=============  =====================================================  ==========================================
step           the coordinator sends                                  the site answers
=============  =====================================================  ==========================================
``advertise``  the session, and who is invited                        fresh public keys, signed
``share``      the signed keys of everyone who answered               shares of its secrets, sealed to each
``mask``       what the others sealed for it                          its words, masked
``commit``     the set whose words arrived                            its signature over the set
``unmask``     signatures of the set by enough of the set             one share for each site of the group
=============  =====================================================  ==========================================

What a site holds to, whatever it is asked:

- everyone it deals with is in its own roster, and its words are added to those of ``min_sites`` others at least;
- the same question gets the same answer, after a kill too; another question in the place of one that was answered is
  refused. A second input under the same masks would tell the difference of the two;
- it signs one set for a round. After that no other set and no other attempt of that round is answered, ever; before it,
  a new attempt has new keys, new masks and new shares, and the old one is dead;
- it gives shares only when it has seen that enough of all sites, not of those asked alone, signed the very same set
  (:mod:`fed_diffmic.exchange.masking.company`), and for each peer one of the two kinds of share;
- its figures go into sums over one set of sites in a run, whatever the round;
- what it must remember is on disk before it answers, the set in its audit log before a share is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fed_diffmic.exchange.masking import keys
from fed_diffmic.exchange.masking.company import check_company, keep_company, signers
from fed_diffmic.exchange.masking.fixed_point import sum_fits
from fed_diffmic.exchange.masking.session import (
    FEW,
    FORGED,
    OTHER,
    OUT_OF_TURN,
    SECOND_SET,
    STALE,
    STRANGER,
    TOO_LARGE,
    MaskingError,
    Session,
    SurvivorSet,
    places_of,
    sorted_names,
)
from fed_diffmic.exchange.masking.shares import open_shares, seal_shares, share_secrets
from fed_diffmic.exchange.masking.store import MaskingStore
from fed_diffmic.exchange.masking.stream import apply_masks
from fed_diffmic.exchange.seal import Signed
from fed_diffmic.provision.keys import PrivateKey, PublicKey

MIN_SITES = 2
State = dict[str, Any]
Shares = dict[str, dict[str, str]]
_NOTHING_YET = {"group": {}, "sealed": {}, "held": {}, "input": "", "set": ""}


class MaskingSite:
    """One site.

    Args:
        name: in the roster.
        signer: the key that it is enrolled with.
        roster: the enrolled key of every site that counts, from the site's own kit; not from the coordinator.
        store: its memory.
        min_sites: how many others there must be in a sum that its words go into.
        among: names of all sites of which a round's sum may be, this one included; none: those of the roster.
    """

    def __init__(
        self,
        name: str,
        signer: PrivateKey,
        roster: Mapping[str, PublicKey],
        store: MaskingStore,
        min_sites: int = MIN_SITES,
        among: Iterable[str] | None = None,
    ) -> None:
        self.name = name
        self.roster = roster
        self.min_sites = min_sites
        self.among = None if among is None else frozenset(among)
        self._signer = signer
        self._store = store

    def advertise(self, session: Session, invited: Iterable[str]) -> Signed:
        """Fresh secrets; their public halves, signed.

        Args:
            session: as the site itself describes the task that came to it.
            invited: names of those who are asked to take part.

        Raises:
            MaskingError: the company is not one for this site; the round is over, or an older one; or this attempt was
                begun for another task.
        """
        self._check_company(invited)
        state = self._store.load(session.place)
        if state is not None:
            known, asked = (state["round"], state["attempt"]), (session.round, session.attempt)
            if asked < known:
                raise MaskingError(STALE, "the round or the attempt is an older one than this site knows")
            if asked == known:
                return Signed(*self._state(session)["advertisement"])
            if session.round == state["round"] and state["set"]:
                raise MaskingError(SECOND_SET, "this site signed the round's set: the round has no other attempt")
        secrets = keys.Secrets.fresh()
        signed = keys.advertise(session, self.name, secrets, self._signer)
        self._store.save(
            session.place,
            {
                "session": session.text,
                "round": session.round,
                "attempt": session.attempt,
                "secrets": secrets.to_json(),
                "advertisement": [signed.text, signed.signature],
                **_NOTHING_YET,
            },
        )
        return signed

    def share(self, session: Session, advertised: Mapping[str, Signed]) -> dict[str, str]:
        """Shares of the site's secrets, sealed to each other site of the group.

        Args:
            session: as before.
            advertised: what each site of the group signed, this one included.

        Raises:
            MaskingError: keys that are not those of this attempt and of sites in the roster; a company that is not one
                for this site; or another group than before.
        """
        state = self._state(session)
        self._check_company(advertised)
        group = {
            name: keys.read_advertisement(advertised[name], session, name, self.roster.get(name))
            for name in sorted(advertised)
        }
        texts = {name: one.signed.text for name, one in group.items()}
        if texts[self.name] != state["advertisement"][0]:
            raise MaskingError(OTHER, "the keys said to be this site's own are not those of this attempt")
        if state["group"]:
            if texts != state["group"]:
                raise MaskingError(OTHER, "this site shared its secrets among another group in this attempt")
            return dict(state["sealed"])
        digest = keys.group_digest(session, texts)
        secrets = keys.Secrets.from_json(state["secrets"])
        pairs = share_secrets(secrets.seed, secrets.mask, places_of(list(group)))
        sealed = {}
        for name, one in group.items():
            if name != self.name:
                key = keys.seal_key(secrets.channel, one.channel, digest, self.name, name)
                sealed[name] = seal_shares(pairs[name], key, group=digest, sender=self.name, recipient=name)
        state |= {"group": texts, "sealed": sealed, "held": {self.name: pairs[self.name].to_json()}}
        self._store.save(session.place, state)
        return sealed

    def may_mask(self, session: Session, sealed: Mapping[str, str], *, anew: bool = False) -> int:
        """How many sites share the attempt's secrets, if words may be masked in it now; nothing is changed.

        Args:
            session: as before.
            sealed: what the other sites sealed for this one; those who sealed nothing are out of the sum.
            anew: the words are not there yet, and would not be the same again: none may have been masked before.

        Raises:
            MaskingError: it is not the time for it, too few shared, or (``anew``) words were masked before.
        """
        state = self._state(session)
        if not state["group"] or state["set"]:
            raise MaskingError(OUT_OF_TURN, "this site has no shares to mask by, or signed the round's set already")
        if anew and state["input"]:
            raise MaskingError(OTHER, "this site masked words in this attempt: a new attempt has new masks")
        names = sorted_names([*sealed, self.name])
        self._check_company(names)
        if not set(names) <= set(state["group"]) or len(names) < self._signers(state):
            raise MaskingError(FEW, "too few sites of the group shared their secrets")
        return len(state["group"])

    def mask(self, session: Session, sealed: Mapping[str, str], words: np.ndarray | None) -> np.ndarray:
        """The site's words under its masks.

        Without words it gives random ones in their place, under one more mask that nobody can lift: nobody reads the
        sum then. Words that are known, such as zeros, would leave the others' sum to be read: one over fewer sites.

        Args:
            session: as before.
            sealed: what the other sites sealed for this one; those who sealed nothing are out of the sum.
            words: ``(session.length,)``, of ``session.bits``, left as they are; none: the site has none.

        Raises:
            MaskingError: it is not the time for it; too few shared; what was sealed does not open; another input than
                before; or words that leave no room for those of the others.
        """
        sites = self.may_mask(session, sealed)
        state, names = self._state(session), sorted_names([*sealed, self.name])
        digest = hashlib.sha256("\0".join(names).encode() + b"\0\0")
        if words is not None:
            self._check_words(session, words, sites)
            digest.update(np.ascontiguousarray(words).data)
        secrets = keys.Secrets.from_json(state["secrets"])
        group = keys.group_digest(session, state["group"])
        peers = {name: self._peer(state, session, name) for name in names if name != self.name}
        if not state["input"]:
            held = dict(state["held"])
            for name, peer in peers.items():
                key = keys.seal_key(secrets.channel, peer.channel, group, name, self.name)
                pair = open_shares(sealed[name], key, group=group, sender=name, recipient=self.name)
                held[name] = pair.to_json()
            state |= {"held": held, "input": digest.hexdigest()}
            self._store.save(session.place, state)
        elif state["input"] != digest.hexdigest():
            raise MaskingError(OTHER, "this site masked other words in this attempt: a new attempt has new masks")
        pairs = {name: keys.mask_key(secrets.mask, peer.mask, group, self.name, name) for name, peer in peers.items()}
        added = [keys.self_key(secrets.seed, group, self.name), *(pairs[name] for name in pairs if self.name < name)]
        if words is None:
            words = np.zeros(session.length, f"<u{session.bits // 8}")
            added.append(keys.nobody_key(secrets.channel, group, self.name))
        masked = words.copy()
        apply_masks(masked, added, [pairs[name] for name in pairs if self.name > name])
        return masked

    def commit(self, session: Session, text: str) -> str:
        """The site's signature over the set whose words arrived; from here on the round has no other set.

        Args:
            session: as before.
            text: of a :class:`~fed_diffmic.exchange.masking.session.SurvivorSet`.

        Raises:
            MaskingError: the set is not one that this site's words may be summed over, or not the one that it signed.
        """
        state = self._state(session)
        if not state["input"]:
            raise MaskingError(OUT_OF_TURN, "this site gave no words that could be in a sum")
        if state["set"] and state["set"] != text:
            raise MaskingError(SECOND_SET, "this site signed another set for this round")
        chosen = SurvivorSet.parse(text)
        check_company(self._store, session, chosen.summed)
        if not state["set"]:
            self._check_set(chosen, state, session)
            state |= {"set": text, "secrets": {}, "sealed": {}}  # what it gave away cannot be computed again from here
            self._store.save(session.place, state)
        keep_company(self._store, session, chosen.summed)
        self._log(session, "masked_set", text)
        return keys.sign_set(text, self._signer)

    def unmask(self, session: Session, signatures: Mapping[str, str]) -> Shares:
        """One share for each site of the group: of its own mask if it is in the sum, of its pairs' masks if it is not.

        Args:
            session: as before.
            signatures: over the set that this site signed, by sites of that set.

        Returns:
            ``{"seed": {name: share}, "mask": {name: share}}``, in hexadecimal.

        Raises:
            MaskingError: this site signed no set, too few others signed the same, or a site of it counts no more.
        """
        state = self._state(session)
        if not state["set"]:
            raise MaskingError(OUT_OF_TURN, "this site signed no set")
        chosen = SurvivorSet.parse(state["set"])
        self._check_company(chosen.summed)  # whom people took out since the set was signed is given no sum
        check_company(self._store, session, chosen.summed)
        for name, signature in signatures.items():
            key = self.roster.get(name)
            if name not in chosen.summed or key is None or not keys.signed_set(state["set"], signature, key):
                raise MaskingError(FORGED, "a signature is not one by a site of the set over this very set")
        if len(signatures) < self._signers(state):
            raise MaskingError(FEW, "too few sites signed the set")
        keep_company(self._store, session, chosen.summed)  # had it died before it could, behind the set
        self._log(session, "masked_shares", state["set"])
        held = {name: state["held"][name] for name in (*chosen.summed, *chosen.dropped)}
        return {
            "seed": {name: held[name][0] for name in chosen.summed},
            "mask": {name: held[name][1] for name in chosen.dropped},
        }

    def _state(self, session: Session) -> State:
        """What the site keeps of this very session.

        Raises:
            MaskingError: it keeps none, or that of another.
        """
        state = self._store.load(session.place)
        if state is None:
            raise MaskingError(OUT_OF_TURN, "this site has advertised no keys for the round")
        if (state["round"], state["attempt"]) != (session.round, session.attempt):
            raise MaskingError(STALE, "the round or the attempt is not the one that this site is in")
        if state["session"] != session.text:
            raise MaskingError(OTHER, "this attempt was begun for another task than the one that came")
        return state

    def _check_company(self, names: Iterable[str]) -> None:
        company = sorted_names(names)
        strangers = [n for n in company if n not in self.roster or (self.among is not None and n not in self.among)]
        if strangers or self.name not in company:
            named = ", ".join(ascii(name)[:80] for name in strangers[:5]) or "this one is left out"
            raise MaskingError(STRANGER, f"a site of the round is none of this site's roster: {named}")
        if len(company) - 1 < self.min_sites:
            raise MaskingError(FEW, f"there are fewer than {self.min_sites} other sites")

    def _check_words(self, session: Session, words: np.ndarray, sites: int) -> None:
        if words.shape != (session.length,) or words.dtype != np.dtype(f"<u{session.bits // 8}"):
            raise MaskingError(OTHER, "the words are not those of the session")
        if not sum_fits(words, sites):
            raise MaskingError(TOO_LARGE, "the words are so large that a sum over the group could leave their range")

    def _check_set(self, chosen: SurvivorSet, state: State, session: Session) -> None:
        """Whether this site's words may be summed over a set."""
        if (chosen.session, chosen.group) != (session.digest, keys.group_digest(session, state["group"])):
            raise MaskingError(OTHER, "the set is one of another session or group")
        if set(chosen.summed) & set(chosen.dropped):
            raise MaskingError(FORGED, "the set asks for both kinds of share of a site")
        if sorted([*chosen.summed, *chosen.dropped]) != sorted(state["held"]):
            raise MaskingError(OTHER, "the set is not one over those who shared their secrets")
        self._check_company(chosen.summed)
        if len(chosen.summed) < self._signers(state):
            raise MaskingError(FEW, "the set holds too few sites")

    def _signers(self, state: State) -> int:
        return signers(len(state["group"]), len(self.among or self.roster))

    def _peer(self, state: State, session: Session, name: str) -> keys.Advertisement:
        """A peer's advertisement as it was verified when secrets were shared."""
        return keys.parse_advertisement(Signed(state["group"][name], ""), session, name)

    def _log(self, session: Session, kind: str, text: str) -> None:
        facts = {name: getattr(session, name) for name in ("run", "arm", "stage", "purpose", "round", "attempt")}
        self._store.log(kind, {**facts, "set": text})
