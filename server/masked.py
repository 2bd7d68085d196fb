"""The masked :class:`server.exchange.Exchange`: the sum of a round's updates, and no site's own.

Training is asked for in the five steps of the protocol (:mod:`fed_diffmic.exchange.masking`). What the algorithm gets
is the mean behind the sum, once for each site of the set: that is what it would make of them, as its server half takes
weighted sums only. Everything else is asked as in plain: figures are the sites' to let out.

A sum whose set is frozen is kept in the run's folder until the next round begins: a coordinator that is ended behind
it asks for signatures and shares again, and for no update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import MessageType
from flwr.serverapp import Grid

from fed_diffmic.algorithms.base import EXTRA, SiteUpdate, Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking.coordinator import MaskedSum, check_quorum
from fed_diffmic.exchange.masking.kept import KeptSum, Where
from fed_diffmic.exchange.masking.requests import MASKED, task_digest, words_of
from fed_diffmic.exchange.masking.session import MaskingError, Session
from fed_diffmic.exchange.masking.update import UpdateForm
from fed_diffmic.exchange.masking.virtual import VirtualRoster
from fed_diffmic.exchange.payload import Payload, PayloadError
from fed_diffmic.exchange.seal import Signed
from fed_diffmic.files import tensors_digest
from fed_diffmic.provision.keys import PublicKey
from server.exchange import Outcome, TrainAnswer, TrainRequest
from server.replies import Events
from server.sites import Question, Sites
from server.terms import RunTerms

STEP = "query.mask"
COARSEST = 1e-6
"""The largest quantum of 32-bit words that is taken: about what float32 keeps of a weight of 10."""
PURPOSE = "train"


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
            check_quorum(self._needed(), len(self.everyone()))
        except MaskingError as error:
            raise RoundError(error.cause, "Raise run.quorum above two thirds.") from error

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
            masked, outcome = self._words(request, kept.begin(where), asked)
            told = {name: dict(reply.header) for name, reply in outcome.replies.items()}
            kept.freeze(masked, told)
        else:
            (masked, told), outcome = resumed, Outcome()
        self._signatures(request, masked, outcome)
        self._shares(request, masked, outcome)
        chosen = masked.chosen
        assert chosen is not None  # it was frozen
        form = self._form(request, len(masked.invited))
        mean, _ = form.mean(masked.unmask(), len(chosen.summed))
        outcome.replies = {name: Payload("train.reply", told[name]) for name in chosen.summed}
        updates = [stand_in(name, mean) for name in chosen.summed]
        return TrainAnswer(updates, {name: told[name]["state"] for name in chosen.summed}, outcome, asked)

    def _form(self, request: TrainRequest, sites: int) -> UpdateForm:
        """How updates are written as words."""
        most = 1
        if self.spec.strategy.weighting == "examples":
            most = max(site.images[0] for site in self.members.values())
        norm = self.spec.strategy.masked_norm
        narrow = UpdateForm(request.sent, sites, norm, most, bits=32)
        return narrow if narrow.numbers.quantum <= COARSEST else UpdateForm(request.sent, sites, norm, most, bits=64)

    def _words(self, request: TrainRequest, attempt: int, asked: set[str] | None) -> tuple[MaskedSum, Outcome]:
        """The steps up to the masked words, added; and the exchange that brought them."""
        task, index = request.task, request.round_index
        self.refresh(request.deadline)
        invited = sorted(name for name in self.members if asked is None or name in asked)
        form = self._form(request, len(invited))
        place = {"run": self.spec.run_id, "arm": self.spec.arm, "stage": task.stage, "round": index}
        alike = {**self._header, **place, "base": task.digest, "weights": tensors_digest(request.sent)}
        session = Session(
            self.spec.run_id, self.spec.arm, task.stage, PURPOSE, index, attempt,
            task_digest(alike, form.digest), form.bits, form.numbers.fraction, form.length,
        )  # fmt: skip
        masked = MaskedSum(session, self.roster, invited, self._needed(asked))
        lost = Outcome()

        def advertised(name: str, answer: Mapping[str, Any]) -> None:
            masked.advertised(name, Signed(*answer["signed"]))

        self._step(request, masked, "advertise", {n: {"invited": invited} for n in invited}, advertised, lost)
        group = {name: [signed.text, signed.signature] for name, signed in masked.group().items()}
        self._step(
            request, masked, "share", dict.fromkeys(group, group), lambda n, a: masked.shared(n, a["sealed"]), lost
        )
        sealed = masked.deliveries()
        rules = {"session": session.text, "norm": float(form.norm), "most_weight": form.most_weight}
        named = {"state": request.site_states, "keep": request.kept_states, "guidance": task.guidance}

        def header(site: str) -> dict[str, Any]:
            found = {name: digests.get(site, "") for name, digests in named.items()}
            ledger = self.hooks.echo(site) or request.ledgers.get(site, "")
            return {**found, "ledger": ledger, MASKED: {**rules, "summands": form.summands, "sealed": sealed[site]}}

        outcome = self._exchange(
            Question(
                MessageType.TRAIN, task, request.sent, index, request.deadline, header=header,
                metrics=lambda site: {}, fields={"state": str, "ledger": str, "claim": str},
                schema={MASKED: (f"int{form.bits}", (form.length,))}, attach_base=index == 1, asked=set(sealed),
                quorate=False,
            )
        )  # fmt: skip
        for name in sorted(outcome.replies):
            self._taken(
                name, request, outcome, lambda n: masked.add(n, words_of(outcome.replies[n].tensors, form.bits))
            )
        outcome.missing = {**lost.missing, **outcome.missing}
        outcome.codes = {**lost.codes, **outcome.codes}
        outcome.replies = {n: Payload(r.kind, r.header) for n, r in outcome.replies.items() if n not in outcome.missing}
        return masked, outcome

    def _signatures(self, request: TrainRequest, masked: MaskedSum, outcome: Outcome) -> None:
        given = {name: {"set": masked.freeze()} for name in masked.chosen.summed} if masked.chosen else {}
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
                STEP, request.task, {}, request.round_index, request.deadline, kind="mask",
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


def stand_in(site: str, mean: Tensors) -> SiteUpdate:
    """The mean in a site's place."""
    extras = {name: value for name, value in mean.items() if name.startswith(EXTRA)}
    tensors = {name: value for name, value in mean.items() if name not in extras}
    return SiteUpdate(site, tensors, 1, algorithm_tensors=extras)


def sites_of(grid: Grid, spec: RunSpec, events: Events, terms: RunTerms, folder: Path, **more: Any) -> Sites:
    """Who asks the sites of a run: plain or masked. An arm of one site (a baseline) has no one to be summed with.

    Args:
        folder: of the run.
        more: as :class:`server.presence.Presence` takes it.
    """
    if spec.strategy.secure_aggregation == "off" or spec.arm.rpartition("/")[2] != "federated":
        return Sites(grid, spec, events, terms, **more)
    return MaskedSites(grid, spec, events, terms, folder=folder, roster=VirtualRoster(spec.seed), **more)
