"""The sites of a run, as the coordinator reaches them: what they are asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MessageType

from fed_diffmic.algorithms.base import EXTRA, SiteUpdate, Tensors
from fed_diffmic.exchange.codecs import build_codec
from fed_diffmic.exchange.failures import POLICY_METRICS, STUDY_MISSING, WITHDRAWN
from fed_diffmic.exchange.masking.company import participants
from fed_diffmic.exchange.packing import Packing
from fed_diffmic.exchange.payload import NEED_BASE, NEED_WEIGHTS, Payload, request_name
from fed_diffmic.exchange.screening import MAX_EXAMPLES, MAX_METRIC, Expected, schema_of
from fed_diffmic.files import tensors_digest
from fed_diffmic.training.coverage import names as coverage_names
from fed_diffmic.training.matrix import METRICS, POINTS, TEST
from fed_diffmic.training.pooled import PREFIX as POOLED
from fed_diffmic.training.subgroups import PREFIX as SUBGROUPS
from fed_diffmic.training.sureness import IMAGES, SETS, SQUARES, UNSURE
from server.exchange import (
    AssessRequest,
    EvaluateRequest,
    MetricsAnswer,
    Outcome,
    Parcel,
    Site,
    StageTask,
    TrainAnswer,
    TrainRequest,
)
from server.presence import Presence
from server.replies import Request, Take
from server.together import Asked, ask_together

ASSESS = "evaluate.assess"
CONFORM = "evaluate.conform"
ANY = (-MAX_METRIC, MAX_METRIC)
POSITIVE = (0.0, MAX_METRIC)
MOST_NLL = 1e6
"""Nats an image at any point of the calibration's grid: far above what the worst finite scores give."""


@dataclass(frozen=True)
class Question:
    """One exchange with every site that is asked, before it is packed.

    Attributes:
        message_type: Flower's.
        task: the stage.
        tensors: what everyone is to hold.
        parcel: what is first sent of them; none: everything.
        round_index: from 1; 0: after the last round.
        deadline: monotonic seconds.
        header: what a site's request says beside what all of them say, by its name.
        metrics: the metrics that a site may send, with their ranges.
        fields: of a good reply's header, with their types.
        reply_tensors: whose names, shapes and dtypes a good reply has; none: it has no tensors.
        schema: dtype and shape of each tensor of a good reply, where they are none of ``reply_tensors``.
        attach_base: send the base to everyone.
        excused: failures of sites that count for the quorum.
        asked: names of those to ask; none: everyone who is there.
        kind: of the request, where it is not the message's.
        quorate: whether the quorum must be met.
        take: what becomes of the tensors of a good reply; none: they stay in it.
    """

    message_type: str
    task: StageTask
    tensors: Tensors
    round_index: int
    deadline: float
    header: Callable[[str], dict[str, Any]]
    metrics: Callable[[Site], Mapping[str, tuple[float, float]]]
    fields: Mapping[str, type] = field(default_factory=dict)
    reply_tensors: Tensors | None = None
    schema: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    parcel: Parcel | None = None
    attach_base: bool = False
    excused: Set[int | str] = frozenset()
    asked: Set[str] | None = None
    kind: str = ""
    quorate: bool = True
    take: Take | None = None


class Sites(Presence):
    """The plain :class:`server.exchange.Exchange`: whoever is there is asked, and every update is seen by itself."""

    def train(self, request: TrainRequest) -> TrainAnswer:
        """One local update at every site that takes part.

        Raises:
            RoundError: the quorum was missed; names the missing sites.
        """
        question = self._training(request)
        return train_answer(request, self._exchange(question), question.asked)

    @property
    def one_message(self) -> bool:
        """Whether a round may be judged with the next one's training: not where a round is more than one request."""
        return type(self).train is Sites.train

    def judge_and_train(self, judge: EvaluateRequest, request: TrainRequest) -> tuple[MetricsAnswer, TrainAnswer]:
        """What :meth:`evaluate` and then :meth:`train` answer, by one message to a site that is asked both.

        Raises:
            RoundError: a quorum was missed, of the one or of the other.
            ValueError: these sites are not asked so (:attr:`one_message`).
        """
        if not self.one_message:
            raise ValueError("a round of these sites is more than one request")
        questions = first, second = self._judging(judge), self._training(request)
        self.refresh(request.deadline)
        outcomes = ask_together(self._channel, self._asked(first), self._asked(second), request.deadline)
        for question, outcome in zip(questions, outcomes, strict=True):
            self._heard(question, outcome)
        return metrics_answer(outcomes[0]), train_answer(request, outcomes[1], questions[1].asked)

    def _training(self, request: TrainRequest) -> Question:
        task, algorithm, keep = request.task, request.algorithm, request.keep
        cfg = self.spec.stage(task.stage)

        def ranges(site: Site) -> dict[str, tuple[float, float]]:
            steps = (0.0, float(cfg.local_steps(site.images[0]))) if algorithm.needs_steps else POSITIVE
            found = {"loss": ANY, "loss_images": POSITIVE, "steps": steps, "seconds": POSITIVE}
            return {**found, "initial_loss": POSITIVE} if algorithm.needs_initial_loss else found

        asked = self.participants(task.stage, request.round_index)
        return Question(
            MessageType.TRAIN,
            task,
            request.sent,
            request.round_index,
            request.deadline,
            header=self.train_header(request),
            fields={"state": str, "ledger": str, "claim": str},
            reply_tensors=request.sent,
            parcel=request.parcel,
            metrics=ranges,
            # A site that was not drawn before, or came late, says that it lacks the base, and gets it then.
            attach_base=request.round_index == 1,
            asked=asked,
            take=None if keep is None else lambda site, reply: keep.take(site_update(site, reply)),
        )

    def train_header(self, request: TrainRequest) -> Callable[[str], dict[str, str]]:
        """What a request to train says to each site, by its name: what it builds on, and its ledger as it was seen."""
        named = {"state": request.site_states, "keep": request.kept_states, "guidance": request.task.guidance}

        def header(site: str) -> dict[str, str]:
            found = {name: digests.get(site, "") for name, digests in named.items()}
            return {**found, "ledger": self.hooks.echo(site) or request.ledgers.get(site, "")}

        return header

    def participants(self, stage: str, round_index: int) -> set[str] | None:
        """Who is drawn to train in a round (``strategy.participation``); none: everyone who is there."""
        return participants(self.spec, self.everyone(), stage, round_index)

    def evaluate(self, request: EvaluateRequest) -> MetricsAnswer:
        """Metrics on every site's validation images.

        Raises:
            RoundError: the quorum was missed.
        """
        return metrics_answer(self._exchange(self._judging(request)))

    def _judging(self, request: EvaluateRequest) -> Question:
        task, sums = request.task, request.sums

        def ranges(site: Site) -> dict[str, tuple[float, float]]:
            result = dict.fromkeys(("auroc_macro", "balanced_accuracy", "accuracy"), (0.0, 1.0))
            # A site that keeps back how many validation images it has: no more than it trains on.
            most = float(site.images[0] if site.images[1] is None else site.images[1])
            result |= {"loss": (0.0, MOST_NLL), "num_examples": (0.0, most)}
            return {**result, "nll/": (0.0, MOST_NLL * most)} if sums else result

        def header(site: str) -> dict[str, Any]:
            own = {"state": request.site_states.get(site, ""), "guidance": task.guidance.get(site, "")}
            return {**own, "prior": [float(p) for p in request.prior], "sums": sums, "split": "val"}

        return Question(
            MessageType.EVALUATE,
            task,
            request.tensors,
            request.round_index,
            request.deadline,
            header=header,
            metrics=ranges,
            parcel=request.parcel,
            excused={POLICY_METRICS} if sums else set(),
            asked=request.asked,
        )

    def assess(self, request: AssessRequest) -> MetricsAnswer:
        """Metrics of a finished stage's model on every site's test images that its policy lets out.

        No quorum is needed: a site that says nothing is left out.
        """
        share = (*METRICS, *POINTS)
        names = [name for figure in share for name in (figure, f"{figure}/low", f"{figure}/high")]
        ranges = {**{TEST + name: (0.0, 1.0) for name in names}, f"{TEST}complete": (0.0, 1.0)}
        counts = ["n", "groups", *(f"positives/{index}" for index in range(self.spec.num_classes))]
        ranges |= {TEST + name: (0.0, float(MAX_EXAMPLES)) for name in counts}
        ranges |= {TEST + name: bounds for name, bounds in coverage_names(self.spec.num_classes).items()}
        ranges[SUBGROUPS] = ranges[POOLED] = (0.0, float(MAX_EXAMPLES))
        sets = {} if request.sureness is None else {"sureness": request.sureness.to_json()}
        return self._ask_finished(request, ASSESS, "assess", lambda site: ranges, sets)

    def conform(self, request: AssessRequest) -> MetricsAnswer:
        """Counts of every site's validation images under a finished stage's model, for prediction sets.

        No quorum is needed: a site that says nothing is left out.
        """

        def ranges(site: Site) -> dict[str, tuple[float, float]]:
            # A site that keeps back how many validation images it has: no more than it trains on.
            most = float(site.images[0] if site.images[1] is None else site.images[1])
            return {IMAGES: (0.0, most), SQUARES: (0.0, most * most), SETS: (0.0, most), UNSURE: (0.0, most)}

        return self._ask_finished(request, CONFORM, "conform", ranges, {})

    def _ask_finished(
        self,
        request: AssessRequest,
        message_type: str,
        kind: str,
        ranges: Callable[[Site], Mapping[str, tuple[float, float]]],
        more: Mapping[str, Any],
    ) -> MetricsAnswer:
        def header(site: str) -> dict[str, Any]:
            own = {"state": request.site_states.get(site, ""), "guidance": request.task.guidance.get(site, "")}
            return {**own, "calibration": request.fitted.to_json(), **more}

        outcome = self._exchange(
            Question(
                message_type,
                request.task,
                request.tensors,
                0,
                request.deadline,
                kind=kind,
                header=header,
                metrics=ranges,
                parcel=request.parcel,
                asked=request.asked,
                quorate=False,
            )
        )
        return metrics_answer(outcome)

    def _exchange(self, question: Question) -> Outcome:
        task, round_index, asked = question.task, question.round_index, question.asked
        self.refresh(question.deadline)
        requests = self._requests(question)
        outcome = self._ask(
            requests, question.message_type, question.deadline, stage=task.stage, round_index=round_index, asked=asked,
            take=question.take,
        )  # fmt: skip
        self._heard(question, outcome)
        return outcome

    def _asked(self, question: Question) -> Asked:
        facts = {"arm": self.spec.arm, "stage": question.task.stage, "round": question.round_index}
        requests, needed = self._requests(question), self._needed(question.asked)
        return Asked(requests, question.message_type, facts, needed, question.take)

    def _heard(self, question: Question, outcome: Outcome) -> None:
        """What an exchange tells of the sites; raises RoundError where the quorum was missed."""
        task, round_index, asked = question.task, question.round_index, question.asked
        self.heads |= outcome.heads
        gone = [name for name, code in outcome.codes.items() if code == WITHDRAWN and name in self.members]
        for name in gone:
            del self.members[name]
            self.withdrawn.add(name)
            self.events.emit("site_withdrew", site=name, stage=task.stage, round=round_index)
        for name in [name for name, code in outcome.codes.items() if code == STUDY_MISSING and name in self.members]:
            self._known.discard(self.members.pop(name).node)  # its folder is another: it gets the study again
        good = set(outcome.replies) | {name for name, code in outcome.codes.items() if code in question.excused}
        if question.quorate:
            self.check_quorum(f"stage {task.stage}, round {round_index}", good, outcome.missing, asked)

    def _requests(self, question: Question) -> list[Request]:
        """One for each site that is asked; what is sent first, and what a site may lack, is packed once for all."""
        task, tensors, reply = question.task, question.tensors, question.reply_tensors
        kind = question.kind or question.message_type
        base = {f"base/{name}": value for name, value in task.frozen.items()}
        weights = tensors_digest(tensors)
        first = question.parcel or Parcel(tensors)
        sent = Packing({**first.tensors, **base} if question.attach_base else first.tensors)
        whole = functools.cache(lambda: Packing(tensors))
        with_base = functools.cache(lambda: Packing({**tensors, **base}))
        codec = build_codec(self.spec.strategy)

        requests = []
        for site in self.members.values():
            if question.asked is not None and site.name not in question.asked:
                continue
            common = {
                "run": self.spec.run_id,
                "arm": self.spec.arm,
                "stage": task.stage,
                "round": question.round_index,
            }
            named = {"site": site.name, "base": task.digest, "weights": weights}
            facts = {**self._header, **common, **named, **question.header(site.name)}
            expected = Expected(
                kind=f"{kind}.reply",
                header={**common, "site": site.name, "request": request_name(facts)},
                fields=question.fields,
                schema=schema_of(reply) if reply is not None else question.schema,
                weighted=reply is not None,
                max_examples=site.images[0],
                reference=reply or {},
                max_norm=self.hooks.max_update_norm,
                max_steps=self.spec.stage(task.stage).local_steps(site.images[0]),
                metrics=question.metrics(site),
                codec=None if question.schema else codec,  # words under masks are not coded
            )
            lacking = {NEED_WEIGHTS: whole, NEED_BASE: with_base}
            requests.append(Request(site, Payload(kind, facts), expected, sent, first.fields, lacking))
        return requests


def metrics_answer(outcome: Outcome) -> MetricsAnswer:
    """Good replies as metrics by site."""
    return MetricsAnswer({name: dict(outcome.replies[name].metrics) for name in sorted(outcome.replies)}, outcome)


def train_answer(request: TrainRequest, outcome: Outcome, asked: Set[str] | None) -> TrainAnswer:
    """Good replies as updates, or as what was made of them as they came."""
    keep, names = request.keep, sorted(outcome.replies)
    site_states = {name: outcome.replies[name].header["state"] for name in names}
    if keep is not None:
        return TrainAnswer(keep.updates(), site_states, outcome, asked, keep.sums())
    updates = [site_update(name, outcome.replies[name]) for name in names]
    return TrainAnswer(updates, site_states, outcome, asked)


def site_update(site: str, reply: Payload) -> SiteUpdate:
    """A screened reply as an algorithm's server half sees it."""
    algorithm_tensors = {name: value for name, value in reply.tensors.items() if name.startswith(EXTRA)}
    return SiteUpdate(
        site=site,
        tensors={name: value for name, value in reply.tensors.items() if name not in algorithm_tensors},
        num_examples=reply.header["num_examples"],
        algorithm_tensors=algorithm_tensors,
        steps=reply.metrics.get("steps"),
        initial_loss=reply.metrics.get("initial_loss"),
    )
