"""The coordinator's part in a masked sum: it relays, adds masked words as they come, and lifts the masks of the sum.

Nothing that it holds tells it a site's words, and what it can ask of honest sites gives one sum. Its part is judged by
the sites, so what is checked here serves to name who broke the sum, and to end a round that cannot end well.

A message that a site should not have sent raises :class:`~fed_diffmic.exchange.masking.session.MaskingError` and
changes nothing: the caller leaves the site out from there on, as one that was lost. Too few sites end the attempt with
:class:`~fed_diffmic.errors.RoundError`, and nothing is unmasked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking import keys
from fed_diffmic.exchange.masking.fixed_point import add_words
from fed_diffmic.exchange.masking.session import (
    BAD_SHARE,
    FEW,
    FORGED,
    OUT_OF_TURN,
    MaskingError,
    Session,
    SurvivorSet,
    places_of,
    sorted_names,
)
from fed_diffmic.exchange.masking.shamir import PRIME, ShareError, join, share_threshold, weights_at_zero
from fed_diffmic.exchange.masking.stream import apply_masks
from fed_diffmic.exchange.seal import Signed
from fed_diffmic.provision.keys import PublicKey

TRIES = 2000  # sets of givers whose shares are tried for one secret, if some of them are wrong
Weights = dict[tuple[str, ...], dict[int, int]]


class MaskedSum:
    """One attempt, from the invitation to the sum.

    Args:
        session: what is summed.
        roster: the enrolled key of each site.
        invited: names of the sites that are asked.
        least: how many sites a round needs (its quorum); the threshold of shares counts besides.
    """

    def __init__(
        self, session: Session, roster: Mapping[str, PublicKey], invited: Iterable[str], least: int = 1
    ) -> None:
        self.session = session
        self.roster = roster
        self.invited = sorted_names(invited)
        self.least = least
        self.total = np.zeros(session.length, f"<u{session.bits // 8}")
        self.chosen: SurvivorSet | None = None
        self._group: dict[str, keys.Advertisement] = {}
        self._grouped = False
        self._sealed: dict[str, dict[str, str]] = {}
        self._delivered: tuple[str, ...] = ()
        self._added: set[str] = set()
        self._signatures: dict[str, str] = {}
        self._shares: dict[str, dict[str, dict[str, int]]] = {}

    # ---- keys ------------------------------------------------------------------------------
    def advertised(self, site: str, signed: Signed) -> None:
        """A site's keys."""
        self._expect(not self._grouped and site in self.invited)
        self._group[site] = keys.read_advertisement(signed, self.session, site, self.roster.get(site))

    def group(self) -> dict[str, Signed]:
        """What every site of the group is sent: the keys of all; who has not answered is out of the attempt.

        Raises:
            RoundError: too few answered.
        """
        self._enough(self._group, "keys", 1)
        self._grouped = True
        return {name: self._group[name].signed for name in sorted(self._group)}

    @property
    def threshold(self) -> int:
        """How many sites of the group must do each further step."""
        return share_threshold(len(self._group))

    # ---- shares ----------------------------------------------------------------------------
    def shared(self, site: str, sealed: Mapping[str, str]) -> None:
        """What a site sealed for each other site of the group."""
        self._expect(self._grouped and not self._delivered and site in self._group)
        if set(sealed) != set(self._group) - {site} or not all(isinstance(text, str) for text in sealed.values()):
            raise MaskingError(BAD_SHARE, f"{site} did not share its secrets among the group")
        self._sealed[site] = dict(sealed)

    def deliveries(self) -> dict[str, dict[str, str]]:
        """What each site that shared is sent: what the others that shared sealed for it, by the name of who did.

        Raises:
            RoundError: too few shared.
        """
        self._enough(self._sealed, "shares", self.threshold)
        self._delivered = sorted_names(self._sealed)
        return {
            name: {sender: self._sealed[sender][name] for sender in self._delivered if sender != name}
            for name in self._delivered
        }

    # ---- masked words ----------------------------------------------------------------------
    def add(self, site: str, words: np.ndarray) -> None:
        """A site's masked words, added to the others' at once; they need not be kept."""
        self._expect(self.chosen is None and site in self._delivered and site not in self._added)
        add_words(self.total, words)
        self._added.add(site)

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the sites whose words arrived, sorted."""
        return sorted_names(self._added)

    def freeze(self) -> str:
        """The set whose words arrived, as a text to be signed; from here on nothing is added.

        The caller makes :meth:`to_json` and :attr:`total` durable before anybody is asked to sign: a site signs one set
        for a round.

        Raises:
            RoundError: too few sent words.
        """
        if self.chosen is None:
            self._enough(self._added, "masked updates", self.threshold)
            texts = {name: one.signed.text for name, one in self._group.items()}
            summed, dropped = sorted_names(self._added), sorted_names(set(self._delivered) - self._added)
            group = keys.group_digest(self.session, texts)
            self.chosen = SurvivorSet(self.session.digest, group, summed, dropped)
        return self.chosen.text

    # ---- the set ---------------------------------------------------------------------------
    def signed(self, site: str, signature: str) -> None:
        """A site's signature over the set."""
        chosen = self._frozen()
        self._expect(site in chosen.summed)
        if not keys.signed_set(chosen.text, signature, self.roster[site]):
            raise MaskingError(FORGED, f"{site} did not sign the set")
        self._signatures[site] = signature

    def signatures(self) -> dict[str, str]:
        """What each site that signed is sent.

        Raises:
            RoundError: too few signed.
        """
        self._enough(self._signatures, "signatures of the set", self.threshold)
        return dict(sorted(self._signatures.items()))

    # ---- unmasking -------------------------------------------------------------------------
    def shares(self, site: str, given: object) -> None:
        """The shares that a site gives: of the own masks of those in the set, of pairs' masks of those out of it."""
        chosen = self._frozen()
        self._expect(site in chosen.summed)
        wanted = {"seed": chosen.summed, "mask": chosen.dropped}
        if not isinstance(given, dict) or set(given) != set(wanted):
            raise MaskingError(BAD_SHARE, f"{site} gave no shares")
        found = {}
        for kind, names in wanted.items():
            part = given[kind]
            if not isinstance(part, dict) or set(part) != set(names):
                raise MaskingError(BAD_SHARE, f"{site} gave other shares than those of the set")
            found[kind] = {name: _field_element(part[name], site) for name in names}
        self._shares[site] = found

    def unmask(self) -> np.ndarray:
        """The sum of the words of the set; exact.

        Raises:
            RoundError: too few gave shares, or what they gave is wrong.
        """
        chosen = self._frozen()
        self._enough(self._shares, "shares of masks", self.threshold)
        digest = chosen.group
        weights: Weights = {}
        added: list[bytes] = []
        taken: list[bytes] = []
        for name in chosen.summed:
            seed = self._recover("seed", name, weights)
            taken.append(keys.self_key(seed, digest, name))
        for name in chosen.dropped:
            secret = self._recover("mask", name, weights)
            for other in chosen.summed:
                key = keys.mask_key(secret, self._group[other].mask, digest, name, other)
                (taken if other < name else added).append(key)  # as `other` added or took it
        words = self.total.copy()
        apply_masks(words, added, taken)
        return words

    def _recover(self, kind: str, name: str, weights: Weights) -> bytes:
        """The secret of a site, from any givers whose shares fit what it committed itself to.

        Args:
            weights: Lagrange's, of givers whose shares fitted for another secret; added to.
        """
        places = places_of(list(self._group))
        one = self._group[name]
        for givers in self._givers(tuple(weights)):
            at_zero = weights.get(givers) or weights_at_zero(places[giver] for giver in givers)
            try:
                secret = join({places[g]: self._shares[g][kind][name] for g in givers}, at_zero)
            except ShareError:
                continue
            seed = kind == "seed" and keys.seed_digest(secret, self.session, name) == one.seed
            if seed or (kind == "mask" and keys.public_of(secret) == one.mask):
                weights[givers] = at_zero
                return secret
        raise RoundError(
            f"the shares of {name}'s masks do not fit what it advertised; the sum stays masked "
            f"(shares came from {', '.join(sorted(self._shares))})",
            f"Either {name} shared something else, or too many of the others gave wrong shares. Ask them which version "
            "they run and compare audit logs; the round has no other attempt.",
        )

    def _givers(self, known: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        """As many givers as the threshold: those who are known to be right first, then all sets, or some at random.

        In the order of names the first sets would all hold the first sites: one wrong giver there would be in each of
        them.
        """
        yield from known
        names = sorted(self._shares)
        if math.comb(len(names), self.threshold) <= TRIES:
            yield from combinations(names, self.threshold)
            return
        drawn = random.SystemRandom()
        for _ in range(TRIES):
            yield tuple(sorted(drawn.sample(names, self.threshold)))

    # ---- after a restart -------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """Everything but :attr:`total` of a sum whose set is frozen; no secret."""
        return {
            "session": self.session.text,
            "invited": list(self.invited),
            "least": self.least,
            "group": {name: [one.signed.text, one.signed.signature] for name, one in sorted(self._group.items())},
            "set": self._frozen().text,
        }

    @classmethod
    def resume(cls, value: Mapping[str, Any], total: np.ndarray, roster: Mapping[str, PublicKey]) -> MaskedSum:
        """A sum whose set was frozen before a restart; signatures and shares are asked for again.

        Raises:
            MaskingError: it is not one, or a key of it is not one of the roster any more.
        """
        session, chosen = Session.parse(value["session"]), SurvivorSet.parse(value["set"])
        found = cls(session, roster, value["invited"], value["least"])
        for name, (text, signature) in value["group"].items():
            found.advertised(name, Signed(text, signature))
        found.group()
        found._delivered, found._added = sorted_names([*chosen.summed, *chosen.dropped]), set(chosen.summed)
        add_words(found.total, total)
        if found.freeze() != chosen.text:
            raise MaskingError(OUT_OF_TURN, "what was kept of a masked sum does not belong together")
        return found

    def _frozen(self) -> SurvivorSet:
        self._expect(self.chosen is not None)
        assert self.chosen is not None
        return self.chosen

    def _expect(self, holds: bool) -> None:
        if not holds:
            raise MaskingError(OUT_OF_TURN, "a message of a masked sum came out of its turn, or from a site not in it")

    def _enough(self, there: Iterable[str], what: str, threshold: int) -> None:
        """Whether a step was done by enough sites."""
        have = sorted(there)
        need = max(self.least, threshold)
        if len(have) < need:
            lost = sorted(set(self.invited) - set(have))
            raise RoundError(
                f"stage {self.session.stage}, round {self.session.round}: {len(have)} sites gave {what}, "
                f"{need} are needed; nothing was unmasked. Missing: {', '.join(lost) or 'none'}",
                "See why these sites were lost, then resume the run.",
            )


def check_quorum(quorum: int, sites: int) -> None:
    """Whether a round that has its quorum can be unmasked, should the sites beyond the quorum be lost.

    Args:
        quorum: how many sites a round needs.
        sites: how many take part.

    Raises:
        MaskingError: it cannot.
    """
    threshold = share_threshold(sites)
    if quorum < threshold:
        raise MaskingError(
            FEW,
            f"{quorum} of {sites} sites would be a quorum, but masks are lifted by {threshold} or more",
        )


def _field_element(text: object, site: str) -> int:
    try:
        value = int(text, 16) if isinstance(text, str) and len(text) <= 66 else -1
    except ValueError:
        value = -1
    if not 0 <= value < PRIME:
        raise MaskingError(BAD_SHARE, f"{site} gave a share that is none")
    return value
