"""The masked :class:`server.exchange.Exchange`: the sum of a round's updates, and no site's own.

Training is asked for in the five steps of the protocol (:mod:`fed_diffmic.exchange.masking`). What the algorithm gets
is that sum (:class:`fed_diffmic.algorithms.sums.Sums`): its server half takes weighted sums only. Everything else is
asked as in plain: metrics are the sites' to let out.

A sum whose set is frozen is kept in the run's folder until the next round begins: a coordinator that is ended behind
it asks for signatures and shares again, and for no update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import MessageType

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking.coordinator import MaskedSum, check_quorum
from fed_diffmic.exchange.masking.kept import KeptSum, Where
from fed_diffmic.exchange.masking.requests import MASKED, task_digest, words_of
from fed_diffmic.exchange.masking.session import FEW, MaskingError, Session, SurvivorSet
from fed_diffmic.exchange.masking.virtual import VirtualRoster
from fed_diffmic.exchange.payload import Payload, PayloadError
from fed_diffmic.exchange.seal import Signed
from fed_diffmic.files import tensors_digest
from fed_diffmic.provision.keys import PublicKey
from server.exchange import Outcome, Parcel, TrainAnswer, TrainRequest
from server.hooks import Hooks
from server.sites import Question, Sites
from server.terms import RunTerms
from server.words import Words, most_of, update_words

STEP = "query.mask"
PURPOSE = "train"
KEYS, TRAINING, SIGNING = 1 / 3, 4 / 5, 1 / 2
"""Of the time that a round has left, what each step may take; the last one takes what is left."""
FEWEST = 3
"""Sites in a sum: of two each would know the other's update."""


class MaskedSites(Sites):
    """Sites whose updates are summed under masks.

    Args:
        sites: as :class:`server.sites.Sites` takes them.
        folder: of the run; a frozen sum is kept below it.
        roster: the enrolled key of each site.
    """

    def __init__(self, *sites: Any, folder: Path, roster: Mapping[str, PublicKey], **more: Any) -> None:
        super().__init__(*sites, **more)
        self.folder = folder
        self.roster = roster

    def find(self, deadline: float) -> None:
        """As every exchange; and whether a round that has its quorum can be unmasked.

        Raises:
            RoundError: fewer than the quorum came, or it is too small.
        """
        super().find(deadline)
        try:
            asked = self.participants(self.terms.stages[0], 1)  # as many in every round
            sites = len(self.everyone() if asked is None else asked)
            if sites < FEWEST:
                raise MaskingError(
                    FEW, f"a masked sum is over {FEWEST} sites or more, and a round here is over {sites}"
                )
            check_quorum(self._needed(asked), sites)
        except MaskingError as error:
            raise RoundError(
                error.cause,
                "Raise run.quorum above two thirds, or strategy.participation, or let more sites take part.",
            ) from error

    def train(self, request: TrainRequest) -> TrainAnswer:
        """One local update at every site that takes part, and the mean of those in the set.

        Raises:
            RoundError: too few sites did a step; nothing is unmasked.
            ModelFileError: what was kept of a frozen sum cannot be resumed.
        """
        where: Where = (self.spec.run_id, self.spec.arm, request.task.stage, PURPOSE, request.round_index)
        kept = KeptSum(self.folder / MASKED)
        asked = self.participants(request.task.stage, request.round_index)
        resumed = kept.resume(where, self.roster)
        if resumed is None:
            masked, words, outcome = self._words(request, kept.begin(where), asked)
            headers = {name: dict(reply.header) for name, reply in outcome.replies.items()}
            told: dict[str, Any] = {"headers": headers, "digests": outcome.digests, **words.kept}
            kept.freeze(masked, told)
        else:
            (masked, told), outcome = resumed, Outcome()
            words = self.written(request, len(masked.invited), told)
            outcome.digests = dict(told["digests"])
        text = masked.freeze()
        self._log_set(masked.session, text)  # before a site is asked to agree to it
        self._signatures(request, masked, outcome)
        self._shares(request, masked, outcome)
        summed = SurvivorSet.parse(text).summed
        images = {name: self.claims[name]["images"][0] for name in summed}
        updates, sums = words.read(masked.unmask(), images)
        outcome.replies = {name: Payload("train.reply", told["headers"][name]) for name in summed}
        states = {name: told["headers"][name]["state"] for name in summed}
        return TrainAnswer(updates, states, outcome, asked, sums)

    def _log_set(self, session: Session, text: str) -> None:
        facts = {name: getattr(session, name) for name in ("run", "arm", "stage", "round", "attempt")}
        self.hooks.log("masked_set", **facts, set=text)

    def written(self, request: TrainRequest, sites: int, kept: Mapping[str, Any] | None = None) -> Words:
        """How what sites give in a round is written.

        Args:
            sites: how many there are in the sum at most.
            kept: of the sum that is resumed; none: it begins.
        """
        images = [site.images[0] for site in self.members.values()]
        return update_words(self.spec, request, sites, most_of(self.spec, request, images) if kept is None else kept)

    def _words(self, request: TrainRequest, attempt: int, asked: set[str] | None) -> tuple[MaskedSum, Words, Outcome]:
        """The steps up to the masked words, added; how they are written, and the exchange that brought them."""
        task, index = request.task, request.round_index
        self.refresh(request.deadline)
        invited = sorted(name for name in self.members if asked is None or name in asked)
        form = self.written(request, max(1, len(invited)))
        place = {"run": self.spec.run_id, "arm": self.spec.arm, "stage": task.stage, "round": index}
        alike = {**self._header, **place, "base": task.digest, "weights": tensors_digest(request.sent)}
        session = Session(
            self.spec.run_id, self.spec.arm, task.stage, PURPOSE, index, attempt,
            task_digest(alike, form.digest), form.bits, form.fraction, form.length,
        )  # fmt: skip
        masked = MaskedSum(session, self.roster, invited, self._needed(asked))
        lost = Outcome()

        def advertised(name: str, answer: Mapping[str, Any]) -> None:
            masked.advertised(name, Signed(*answer["signed"]))

        begun = replace(request, deadline=part_of_time(request.deadline, KEYS))
        self._step(begun, masked, "advertise", {n: {"invited": invited} for n in invited}, advertised, lost)
        group = {name: [signed.text, signed.signature] for name, signed in masked.group().items()}
        begun = replace(request, deadline=part_of_time(request.deadline, KEYS))
        self._step(
            begun, masked, "share", dict.fromkeys(group, group), lambda n, a: masked.shared(n, a["sealed"]), lost
        )
        sealed = masked.deliveries()
        plain = self.train_header(request)

        def header(site: str) -> dict[str, Any]:
            return {**plain(site), MASKED: {**form.rules, "session": session.text, "sealed": sealed[site]}}

        outcome = self._exchange(
            Question(
                MessageType.TRAIN, task, request.sent, index, part_of_time(request.deadline, TRAINING), header=header,
                metrics=lambda site: {}, fields={"state": str, "ledger": str, "claim": str},
                schema={MASKED: (f"int{form.bits}", (form.length,))}, attach_base=index == 1, asked=set(sealed),
                quorate=False, parcel=request.parcel,
            )
        )  # fmt: skip
        for name in sorted(outcome.replies):
            self._taken(
                name, request, outcome, lambda n: masked.add(n, words_of(outcome.replies[n].tensors, form.bits))
            )
        outcome.missing = {**lost.missing, **outcome.missing}
        outcome.codes = {**lost.codes, **outcome.codes}
        outcome.replies = {n: Payload(r.kind, r.header) for n, r in outcome.replies.items() if n not in outcome.missing}
        outcome.digests = {name: digest for name, digest in outcome.digests.items() if name in outcome.replies}
        return masked, form, outcome

    def _signatures(self, request: TrainRequest, masked: MaskedSum, outcome: Outcome) -> None:
        text = masked.freeze()
        given = {name: {"set": text} for name in SurvivorSet.parse(text).summed}
        request = replace(request, deadline=part_of_time(request.deadline, SIGNING))
        self._step(request, masked, "commit", given, lambda n, a: masked.signed(n, a["signature"]), outcome)

    def _shares(self, request: TrainRequest, masked: MaskedSum, outcome: Outcome) -> None:
        given = dict.fromkeys(masked.signatures(), masked.signatures())
        self._step(request, masked, "unmask", given, lambda n, a: masked.shares(n, a["shares"]), outcome)

    def _step(
        self,
        request: TrainRequest,
        masked: MaskedSum,
        step: str,
        given: Mapping[str, Mapping[str, Any]],
        take: Callable[[str, Mapping[str, Any]], None],
        told: Outcome,
    ) -> None:
        """Ask the sites of ``given`` for a step, and take each answer; who is lost is named in ``told``."""
        asked = self._exchange(
            Question(
                # The round's weights by name alone: they travel with the request to train.
                STEP, request.task, request.sent, request.round_index, request.deadline, kind="mask", parcel=Parcel({}),
                header=lambda site: {"session": masked.session.text, "step": step, "given": dict(given[site])},
                metrics=lambda site: {}, fields={"answer": dict}, asked=set(given), quorate=False,
            )
        )  # fmt: skip
        for name in sorted(asked.replies):
            self._taken(name, request, asked, lambda n: take(n, asked.replies[n].header["answer"]))
        told.missing |= asked.missing
        told.codes |= asked.codes

    def _taken(self, name: str, request: TrainRequest, outcome: Outcome, take: Callable[[str], None]) -> None:
        """Take a site's answer, or refuse the site."""
        try:
            take(name)
        except (PayloadError, KeyError, TypeError, ValueError) as error:
            reason = error.reason if isinstance(error, MaskingError) else "malformed"
            self.refused(name, "malformed", request.task.stage, request.round_index)
            outcome.missing[name], outcome.codes[name] = (
                f"its answer is not one of the masked sum ({reason})",
                "malformed",
            )


def part_of_time(deadline: float, share: float) -> float:
    """When a step is to be over, of a round that is to be over at ``deadline`` (monotonic seconds).

    A site that is there and says nothing would else take the whole round's time in its first step; so it costs a part
    of it, and the round goes on without the site.
    """
    return deadline - (1.0 - share) * max(0.0, deadline - time.monotonic())


def is_masked(spec: RunSpec) -> bool:
    """Whether this arm sums under masks: one of one site (a baseline) has no one to be summed with."""
    return spec.strategy.secure_aggregation != "off" and spec.arm.rpartition("/")[2] == "federated"


def roster_of(spec: RunSpec, terms: RunTerms, hooks: Hooks) -> Mapping[str, PublicKey]:
    """The enrolled key of each site, as the coordinator knows it."""
    return VirtualRoster(spec.seed) if hooks.seals is None else EnrolledKeys(hooks.seals.key_of, terms.sites or ())


class EnrolledKeys(Mapping[str, PublicKey]):
    """The coordinator's roster as it stands now: a site that was revoked has no key.

    Args:
        key_of: the key of an admitted site; none: it is not (any more) admitted.
        names: those of the run, for whoever lists them.
    """

    def __init__(self, key_of: Callable[[str], PublicKey | None], names: Iterable[str]) -> None:
        self._key_of = key_of
        self._names = tuple(names)

    def __getitem__(self, site: str) -> PublicKey:
        key = self._key_of(site)
        if key is None:
            raise KeyError(site)
        return key

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
