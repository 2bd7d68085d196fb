"""The steps of one masked sum as questions to the sites, whatever is summed: keys, shares, words, the set, unmasking.

Who is lost at a step is left out from there on; what must outlive a kill of the coordinator is kept by whoever asks
(:class:`fed_diffmic.exchange.masking.kept.KeptSum`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.requests import MASKED, task_digest, words_of
from fed_diffmic.exchange.masking.session import MaskingError, Session, SurvivorSet
from fed_diffmic.exchange.payload import Payload, PayloadError
from fed_diffmic.exchange.seal import Signed
from fed_diffmic.files import tensors_digest
from fed_diffmic.provision.keys import PublicKey
from server.exchange import Outcome, Parcel, StageTask
from server.sites import Question, Sites

STEP = "query.mask"
KEYS, TRAINING, SIGNING = 1 / 3, 4 / 5, 1 / 2
"""Of the time that a round has left, what each step may take; the last one takes what is left."""


@dataclass(frozen=True)
class SumOf:
    """What a masked sum is about.

    Attributes:
        task: the stage.
        tensors: the weights that every site is to hold, by the names that are exchanged.
        round_index: from 1; 0: after the last round.
        deadline: monotonic seconds.
        purpose: one of :data:`fed_diffmic.exchange.masking.session.PURPOSES`.
    """

    task: StageTask
    tensors: Tensors
    round_index: int
    deadline: float
    purpose: str

    def until(self, share: float) -> SumOf:
        """The same with a part of the time that is left."""
        return replace(self, deadline=part_of_time(self.deadline, share))


@dataclass(frozen=True)
class WordsForm:
    """How words are written, as a session says it: its digest, and bits, fraction and number of the words."""

    digest: str
    bits: int
    fraction: int
    length: int


class MaskedSteps(Sites):
    """Sites that answer the steps of masked sums.

    Args:
        sites: as :class:`server.sites.Sites` takes them.
        folder: of the run; a frozen sum is kept below it.
        roster: the enrolled key of each site.
    """

    def __init__(self, *sites: Any, folder: Path, roster: Mapping[str, PublicKey], **more: Any) -> None:
        super().__init__(*sites, **more)
        self.folder = folder
        self.roster = roster

    def session_of(self, about: SumOf, attempt: int, form: WordsForm) -> Session:
        """The session of an attempt at a sum."""
        stage, index = about.task.stage, about.round_index
        place = {"run": self.spec.run_id, "arm": self.spec.arm, "stage": stage, "round": index}
        alike = {**self._header, **place, "base": about.task.digest, "weights": tensors_digest(about.tensors)}
        return Session(
            self.spec.run_id, self.spec.arm, stage, about.purpose, index, attempt,
            task_digest(alike, form.digest), form.bits, form.fraction, form.length,
        )  # fmt: skip

    def keys_and_shares(
        self,
        about: SumOf,
        masked: MaskedSum,
        invited: Sequence[str],
        lost: Outcome,
        none: Callable[[str, Mapping[str, Any]], bool] = lambda name, answer: False,
    ) -> dict[str, dict[str, str]]:
        """The first two steps; what each site that shared is to be sent.

        Args:
            none: whether a site says, in the place of keys, that it is not in this sum.

        Raises:
            RoundError: too few did a step.
        """

        def advertised(name: str, answer: Mapping[str, Any]) -> None:
            if not none(name, answer):
                masked.advertised(name, Signed(*answer["signed"]))

        given: dict[str, Any] = {name: {"invited": list(invited)} for name in invited}
        self._step(about.until(KEYS), masked, "advertise", given, advertised, lost)
        group = {name: [signed.text, signed.signature] for name, signed in masked.group().items()}
        given = dict.fromkeys(group, group)
        self._step(about.until(KEYS), masked, "share", given, lambda n, a: masked.shared(n, a["sealed"]), lost)
        return masked.deliveries()

    def masked_words(self, about: SumOf, masked: MaskedSum, question: Question, lost: Outcome) -> Outcome:
        """Ask for the words, and add them up; who was lost before stands in the outcome too.

        Args:
            question: whose good replies hold masked words.
        """
        outcome = self._exchange(question)
        bits = masked.session.bits
        for name in sorted(outcome.replies):
            self._taken(name, about, outcome, lambda n: masked.add(n, words_of(outcome.replies[n].tensors, bits)))
        outcome.missing = {**lost.missing, **outcome.missing}
        outcome.codes = {**lost.codes, **outcome.codes}
        outcome.replies = {n: Payload(r.kind, r.header) for n, r in outcome.replies.items() if n not in outcome.missing}
        outcome.digests = {name: digest for name, digest in outcome.digests.items() if name in outcome.replies}
        return outcome

    def told_of(self, outcome: Outcome) -> dict[str, Any]:
        """What is kept beside a sum: the replies that brought its words, and what their sites first said of themselves.

        JSON values.
        """
        headers = {name: dict(reply.header) for name, reply in outcome.replies.items()}
        claims = {name: self.claims[name] for name in headers}
        return {"headers": headers, "digests": outcome.digests, "claims": claims}

    def recall(self, told: Mapping[str, Any]) -> dict[str, str]:
        """Take over what was kept beside a sum; the digests of its replies.

        A site of the sum may be away since, and no checkpoint need say what it told of itself.
        """
        self.claims.update(told.get("claims", {}))  # kept by an earlier version: without
        return dict(told["digests"])

    def set_and_shares(self, about: SumOf, masked: MaskedSum, outcome: Outcome) -> tuple[str, ...]:
        """The last two steps, of a sum whose set is frozen and kept; the names of the sites of the set.

        Raises:
            RoundError: too few signed, or gave shares.
        """
        text = masked.freeze()
        session = masked.session
        named = ("run", "arm", "stage", "purpose", "round", "attempt")
        # Before a site is asked to agree to it.
        self.hooks.log("masked_set", **{name: getattr(session, name) for name in named}, set=text)
        summed = SurvivorSet.parse(text).summed
        given: dict[str, Any] = {name: {"set": text} for name in summed}
        self._step(
            about.until(SIGNING), masked, "commit", given, lambda n, a: masked.signed(n, a["signature"]), outcome
        )
        given = dict.fromkeys(masked.signatures(), masked.signatures())
        self._step(about, masked, "unmask", given, lambda n, a: masked.shares(n, a["shares"]), outcome)
        return summed

    def _step(
        self,
        about: SumOf,
        masked: MaskedSum,
        step: str,
        given: Mapping[str, Mapping[str, Any]],
        take: Callable[[str, Mapping[str, Any]], None],
        told: Outcome,
    ) -> None:
        """Ask the sites of ``given`` for a step, and take each answer; who is lost is named in ``told``."""
        asked = self._exchange(
            Question(
                # The round's weights by name alone: they travel with the request for the words.
                STEP, about.task, about.tensors, about.round_index, about.deadline, kind="mask", parcel=Parcel({}),
                header=lambda site: {"session": masked.session.text, "step": step, "given": dict(given[site])},
                metrics=lambda site: {}, fields={"answer": dict}, asked=set(given), quorate=False,
            )
        )  # fmt: skip
        for name in sorted(asked.replies):
            self._taken(name, about, asked, lambda n: take(n, asked.replies[n].header["answer"]))
        told.missing |= asked.missing
        told.codes |= asked.codes

    def _taken(self, name: str, about: SumOf, outcome: Outcome, take: Callable[[str], None]) -> None:
        """Take a site's answer, or refuse the site."""
        try:
            take(name)
        except (PayloadError, KeyError, TypeError, ValueError) as error:
            reason = error.reason if isinstance(error, MaskingError) else "malformed"
            self.refused(name, "malformed", about.task.stage, about.round_index)
            outcome.missing[name], outcome.codes[name] = (
                f"its answer is not one of the masked sum ({reason})",
                "malformed",
            )


def asked_words(sealed: Mapping[str, Mapping[str, str]], masked: MaskedSum, site: str) -> dict[str, Any]:
    """What a request for words says of the sum."""
    return {MASKED: {"session": masked.session.text, "sealed": dict(sealed[site])}}


def replies_of(kind: str, told: Mapping[str, Any], summed: Iterable[str]) -> dict[str, Payload]:
    """The replies of the sites of a set as they were kept."""
    return {name: Payload(kind, told["headers"][name]) for name in summed}


def part_of_time(deadline: float, share: float) -> float:
    """When a step is to be over, of a round that is to be over at ``deadline`` (monotonic seconds).

    A site that is there and says nothing would else take the whole round's time in its first step; so it costs a part
    of it, and the round goes on without the site.
    """
    return deadline - (1.0 - share) * max(0.0, deadline - time.monotonic())
