"""What one masked sum is for, and the set of sites that it is over: the texts to which everything else is bound."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.payload import PayloadError, text_digest

VERSION = 1
MOST_SITES = 200
LONGEST_TEXT = 64 * 1024
FINISHED = ("calibrate", "conform", "test")
"""Sums of what sites say of a finished stage: for its calibration, for prediction sets, and of their test images."""
FIGURES = ("evaluate", *FINISHED)
"""Sums of what sites say of weights on their images: of a round's validation, and of a finished stage."""

PURPOSES = ("train", *FIGURES)
"""What may be summed. A word that is made up would be a second sum over the same round's updates, and a second set."""

# Why a site or a coordinator does not go on (:class:`MaskingError`).
STRANGER, FORGED, STALE, OTHER, FEW, SECOND_SET, OUT_OF_TURN, BAD_SHARE, TOO_LARGE, MALFORMED = (
    "stranger",
    "forged",
    "stale",
    "other",
    "few",
    "second_set",
    "out_of_turn",
    "bad_share",
    "no_room",
    "malformed",
)


class MaskingError(PayloadError):
    """A step of the protocol that is refused, or cannot be done.

    Args:
        reason: one of the words above.
        sentence: nothing of what was sent but names of sites.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Session:
    """One attempt at one masked sum. Keys, masks, shares and signatures of one session are of no use in another.

    Attributes:
        run: the run's name.
        arm: of the run.
        stage: of the run.
        purpose: what is summed, one of :data:`PURPOSES`.
        round: from 1 (0: after the last).
        attempt: from 1, within the round.
        task: digest of everything that all sites of the sum must have been given alike (weights, base, the run's
            settings, the layout of the words). Each site computes it from what came to *it*: sites that were given
            different models have different sessions, and their masks do not cancel (Pasquini et al. 2022).
        bits: of a word.
        fraction: of the fixed point.
        length: number of words.
    """

    run: str
    arm: str
    stage: str
    purpose: str
    round: int
    attempt: int
    task: str
    bits: int
    fraction: int
    length: int

    def __post_init__(self) -> None:
        names = (self.run, self.arm, self.stage, self.purpose, self.task)
        numbers = (self.round, self.attempt, self.bits, self.fraction, self.length)
        if not all(isinstance(name, str) and 0 < len(name) <= 512 for name in names) or any(
            type(number) is not int or abs(number) > 2**53 for number in numbers
        ):
            raise MaskingError(MALFORMED, "a session is not described as one")
        known = self.purpose in PURPOSES and self.bits in (32, 64)
        if self.round < 0 or self.attempt < 1 or self.length < 1 or not known:
            raise MaskingError(MALFORMED, "a session is not described as one")

    @property
    def text(self) -> str:
        """The one way to write it."""
        return canonical({"v": VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}})

    @property
    def digest(self) -> str:
        """SHA-256 of the text: its name."""
        return text_digest(self.text)

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Run, arm, stage and purpose: where rounds follow each other."""
        return self.run, self.arm, self.stage, self.purpose

    @classmethod
    def parse(cls, text: str) -> Session:
        """Inverse of :attr:`text`.

        Raises:
            MaskingError: it is not one.
        """
        value = parse_text(text, {"v", *(f.name for f in fields(cls))})
        return cls(**{name: part for name, part in value.items() if name != "v"})


@dataclass(frozen=True)
class SurvivorSet:
    """The set that a sum is over: what sites sign, each once for a round.

    Attributes:
        session: digest of the session.
        group: digest of the advertised keys (:func:`fed_diffmic.exchange.masking.keys.group_digest`).
        summed: names of the sites whose masked words are in the sum, sorted: their own masks will be lifted.
        dropped: names of those that shared secrets and sent no words, sorted: their masks with others will be lifted.
    """

    session: str
    group: str
    summed: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def text(self) -> str:
        """The one way to write it."""
        names = {"summed": list(self.summed), "dropped": list(self.dropped)}
        return canonical({"v": VERSION, "session": self.session, "group": self.group, **names})

    @classmethod
    def parse(cls, text: str) -> SurvivorSet:
        """Inverse of :attr:`text`; whether the set may be agreed to is the site's to judge.

        Raises:
            MaskingError: it is not one.
        """
        value = parse_text(text, {"v", "session", "group", "summed", "dropped"})
        if not all(isinstance(value[name], str) for name in ("session", "group")):
            raise MaskingError(MALFORMED, "a set of sites is not described as one")
        return cls(value["session"], value["group"], names_of(value["summed"]), names_of(value["dropped"]))


def names_of(value: object) -> tuple[str, ...]:
    """Names of sites: sorted, each once.

    Raises:
        MaskingError: they are not.
    """
    if not isinstance(value, (list, tuple)) or len(value) > MOST_SITES:
        raise MaskingError(MALFORMED, "names of sites are not a list of them")
    if not all(isinstance(name, str) and 0 < len(name) <= 512 for name in value) or list(value) != sorted(set(value)):
        raise MaskingError(MALFORMED, "names of sites are not sorted, each once")
    return tuple(value)


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names as sets and groups hold them."""
    return tuple(sorted(set(names)))


def places_of(group: Sequence[str]) -> dict[str, int]:
    """At which place each site of a group has its shares: from 1, in the order of names."""
    return {name: place for place, name in enumerate(sorted(group), start=1)}


def parse_text(text: object, names: set[str]) -> dict[str, Any]:
    """A JSON object with exactly these names, of this version, in the one canonical way to write it.

    Raises:
        MaskingError: it is not one.
    """
    if isinstance(text, str) and len(text) <= LONGEST_TEXT:
        try:
            value = json.loads(text)
            known = isinstance(value, dict) and set(value) == names and canonical(value) == text
            if known and type(value["v"]) is int and value["v"] == VERSION:
                return dict(value)
        except (ValueError, RecursionError, FedDiffmicError):
            pass  # whatever is wrong with it, there is one answer, below
    raise MaskingError(MALFORMED, "a text of the protocol is not one that is known here")
