"""The masked :class:`server.exchange.Exchange`: the sum of a round's updates, and no site's own.

Training is asked for in the five steps of the protocol (:mod:`fed_diffmic.exchange.masking`). What the algorithm gets
is that sum (:class:`fed_diffmic.algorithms.sums.Sums`): its server half takes weighted sums only. What sites say of
weights on their validation images comes in sums of its own (:mod:`server.masked_figures`).

A sum whose set is frozen is kept in the run's folder until the next round begins: a coordinator that is ended behind
it asks for signatures and shares again, and for no update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import MessageType

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking.coordinator import MaskedSum, check_quorum
from fed_diffmic.exchange.masking.kept import KeptSum, Where
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.masking.session import FEW, MaskingError
from fed_diffmic.exchange.masking.virtual import VirtualRoster
from fed_diffmic.provision.keys import PublicKey
from server.exchange import Outcome, TrainAnswer, TrainRequest
from server.hooks import Hooks
from server.masked_figures import FEWEST, SummedFigures
from server.masked_steps import TRAINING, SumOf, WordsForm, asked_words, replies_of
from server.sites import Question
from server.terms import RunTerms
from server.words import Words, most_of, update_words

PURPOSE = "train"


class MaskedSites(SummedFigures):
    """Sites whose updates, and what they say of weights, are summed under masks."""

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
        about = SumOf(request.task, request.sent, request.round_index, request.deadline, PURPOSE)
        where: Where = (self.spec.run_id, self.spec.arm, request.task.stage, PURPOSE, request.round_index)
        kept = KeptSum(self.folder / MASKED)
        asked = self.participants(request.task.stage, request.round_index)
        resumed = kept.resume(where, self.roster)
        if resumed is None:
            masked, words, outcome = self._words(request, about, kept.begin(where), asked)
            told: dict[str, Any] = {**self.told_of(outcome), **words.kept}
            kept.freeze(masked, told)
        else:
            (masked, told), outcome = resumed, Outcome()
            words = self.written(request, len(masked.invited), told)
            outcome.digests = self.recall(told)
        summed = self.set_and_shares(about, masked, outcome)
        images = {name: self.claims[name]["images"][0] for name in summed}
        updates, sums = words.read(masked.unmask(), images)
        outcome.replies = replies_of("train.reply", told, summed)
        states = {name: told["headers"][name]["state"] for name in summed}
        return TrainAnswer(updates, states, outcome, asked, sums)

    def written(self, request: TrainRequest, sites: int, kept: Mapping[str, Any] | None = None) -> Words:
        """How what sites give in a round is written.

        Args:
            sites: how many there are in the sum at most.
            kept: of the sum that is resumed; none: it begins.
        """
        images = [site.images[0] for site in self.members.values()]
        return update_words(self.spec, request, sites, most_of(self.spec, request, images) if kept is None else kept)

    def _words(
        self, request: TrainRequest, about: SumOf, attempt: int, asked: set[str] | None
    ) -> tuple[MaskedSum, Words, Outcome]:
        """The steps up to the masked words, added; how they are written, and the exchange that brought them."""
        self.refresh(request.deadline)
        invited = sorted(name for name in self.members if asked is None or name in asked)
        form = self.written(request, max(1, len(invited)))
        session = self.session_of(about, attempt, WordsForm(form.digest, form.bits, form.fraction, form.length))
        masked, lost = MaskedSum(session, self.roster, invited, self._needed(asked)), Outcome()
        sealed = self.keys_and_shares(about, masked, invited, lost)
        plain = self.train_header(request)

        def header(site: str) -> dict[str, Any]:
            return {**plain(site), MASKED: {**form.rules, **asked_words(sealed, masked, site)[MASKED]}}

        question = Question(
            MessageType.TRAIN, request.task, request.sent, request.round_index, about.until(TRAINING).deadline,
            header=header, metrics=lambda site: {}, fields={"state": str, "ledger": str, "claim": str},
            schema={MASKED: (f"int{form.bits}", (form.length,))}, attach_base=request.round_index == 1,
            asked=set(sealed), quorate=False, parcel=request.parcel,
        )  # fmt: skip
        return masked, form, self.masked_words(about, masked, question, lost)


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
