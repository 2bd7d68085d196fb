"""The sites of a run, as the coordinator reaches them: what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MessageType

from fed_diffmic.algorithms.base import EXTRA, Algorithm, SiteUpdate, Tensors
from fed_diffmic.exchange.failures import POLICY_METRICS, STUDY_MISSING, WITHDRAWN
from fed_diffmic.exchange.payload import Packed, Payload, pack, request_name
from fed_diffmic.exchange.screening import MAX_EXAMPLES, MAX_FIGURE, Expected, schema_of
from fed_diffmic.files import tensors_digest
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.coverage import names as coverage_names
from fed_diffmic.training.matrix import AT_SPECIFICITY, FIGURES, TEST
from fed_diffmic.training.subgroups import PREFIX as SUBGROUPS
from fed_diffmic.training.sureness import Sureness
from server.presence import Presence
from server.replies import Outcome, Request, Site

ASSESS = "evaluate.assess"
ANY = (-MAX_FIGURE, MAX_FIGURE)
POSITIVE = (0.0, MAX_FIGURE)
MOST_NLL = 1e6
"""Nats an image at any point of the calibration's grid: far above what the worst finite scores give."""


@dataclass(frozen=True)
class StageTask:
    """What a stage's requests have in common.

    Attributes:
        stage: name.
        frozen: the part of the base that never changes, named by its digest.
        guidance: digest of each site's own state of stage guidance on which this stage stands.
    """

    stage: str
    frozen: Tensors
    digest: str
    guidance: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(stage: str, frozen: Tensors, personal: Mapping[str, Mapping[str, str]] | None = None) -> StageTask:
        """With the digest computed once.

        Args:
            personal: digests of the sites' own states that belong to finished stages.
        """
        guidance = (personal or {}).get("guidance", {}) if stage == "diffusion" else {}
        return StageTask(stage, frozen, tensors_digest(frozen), guidance)


class Sites(Presence):
    """The sites of a run: whoever is there is asked to train and to evaluate."""

    def train(
        self,
        task: StageTask,
        sent: Tensors,
        states: Mapping[str, str],
        keep: Mapping[str, str],
        ledgers: Mapping[str, str],
        algorithm: Algorithm,
        round_index: int,
        deadline: float,
    ) -> tuple[list[SiteUpdate], dict[str, str], Outcome]:
        """One local update at every site that takes part.

        Args:
            task: the stage.
            sent: the round's global tensors, and the algorithm's own.
            states: digest of the state that each site builds on.
            keep: digest of a state that each site must not forget, that of the best round.
            ledgers: head of each site's privacy ledger as this run saw it last, where no memory is kept over all runs;
                the site compares.
            algorithm: decides which figures must come.
            round_index: from 1.
            deadline: monotonic seconds.

        Returns:
            screened updates in the order of site names, digests of the sites' new states, the exchange.

        Raises:
            RoundError: the quorum was missed; names the missing sites.
        """
        cfg = self.spec.stage(task.stage)

        def ranges(site: Site) -> dict[str, tuple[float, float]]:
            steps = (0.0, float(cfg.local_steps(site.images[0]))) if algorithm.needs_steps else POSITIVE
            found = {"loss": ANY, "loss_images": POSITIVE, "steps": steps, "seconds": POSITIVE}
            return {**found, "initial_loss": POSITIVE} if algorithm.needs_initial_loss else found

        def header(site: str) -> dict[str, str]:
            named = {"state": states, "keep": keep, "guidance": task.guidance}
            found = {name: digests.get(site, "") for name, digests in named.items()}
            return {**found, "ledger": self.hooks.echo(site) or ledgers.get(site, "")}

        outcome = self._exchange(
            MessageType.TRAIN,
            task,
            sent,
            round_index,
            deadline,
            header=header,
            fields={"state": str, "ledger": str, "claim": str},
            reply_tensors=sent,
            metrics=ranges,
            # A site that was not drawn before, or came late, says that it lacks the base, and gets it then.
            attach_base=round_index == 1,
            asked=self.participants(task.stage, round_index),
        )
        names = sorted(outcome.replies)
        updates = [site_update(name, outcome.replies[name]) for name in names]
        return updates, {name: outcome.replies[name].header["state"] for name in names}, outcome

    def participants(self, stage: str, round_index: int) -> set[str] | None:
        """Who is drawn to train in a round (``strategy.participation``); none: everyone who is there."""
        share = self.spec.strategy.participation
        if share == 1.0:
            return None
        everyone = sorted(self.everyone())
        rng = numpy_generator(self.spec.seed, "participants", self.spec.arm, stage, round_index)
        count = max(1, round(share * len(everyone)))
        return {everyone[i] for i in rng.choice(len(everyone), count, replace=False)}

    def evaluate(
        self,
        task: StageTask,
        tensors: Tensors,
        states: Mapping[str, str],
        prior: Sequence[float],
        round_index: int,
        deadline: float,
        *,
        sums: bool = False,
    ) -> tuple[dict[str, dict[str, float]], Outcome]:
        """Figures of ``tensors`` on every site's validation images, by site name.

        Args:
            states: digest of the state whose part of the model is each site's own.
            prior: the consortium's class prior ``(C,)``.
            sums: ask for the calibration's sums too; a site whose policy keeps them back counts for the quorum.

        Raises:
            RoundError: the quorum was missed.
        """

        def ranges(site: Site) -> dict[str, tuple[float, float]]:
            result = dict.fromkeys(("auroc_macro", "balanced_accuracy", "accuracy"), (0.0, 1.0))
            # A site that keeps back how many validation images it has: no more than it trains on.
            most = float(site.images[0] if site.images[1] is None else site.images[1])
            result |= {"loss": (0.0, MOST_NLL), "num_examples": (0.0, most)}
            return {**result, "nll/": (0.0, MOST_NLL * most)} if sums else result

        outcome = self._exchange(
            MessageType.EVALUATE,
            task,
            tensors,
            round_index,
            deadline,
            header=lambda site: {
                "state": states.get(site, ""),
                "guidance": task.guidance.get(site, ""),
                "prior": [float(p) for p in prior],
                "sums": sums,
                "split": "val",
            },
            metrics=ranges,
            excused={POLICY_METRICS} if sums else set(),
        )
        return {name: dict(outcome.replies[name].metrics) for name in sorted(outcome.replies)}, outcome

    def assess(
        self,
        task: StageTask,
        tensors: Tensors,
        states: Mapping[str, str],
        fitted: Calibration,
        deadline: float,
        asked: Set[str] | None = None,
        sureness: Sureness | None = None,
    ) -> tuple[dict[str, dict[str, float]], Outcome]:
        """Figures of a finished stage's model on every site's test images that its policy lets out, by site name.

        No quorum is needed: a site that says nothing is left out.

        Args:
            states: digest of the state whose part of the model is each site's own.
            fitted: the stage's calibration.
            asked: names of those to ask; none: everyone who is there.
            sureness: thresholds whose coverage is asked for too; none: there are none.
        """
        share = (*FIGURES, AT_SPECIFICITY)
        names = [name for figure in share for name in (figure, f"{figure}/low", f"{figure}/high")]
        ranges = {**{TEST + name: (0.0, 1.0) for name in names}, f"{TEST}complete": (0.0, 1.0)}
        counts = ["n", "groups", *(f"positives/{index}" for index in range(self.spec.num_classes))]
        ranges |= {TEST + name: (0.0, float(MAX_EXAMPLES)) for name in counts}
        ranges |= {TEST + name: bounds for name, bounds in coverage_names(self.spec.num_classes).items()}
        ranges[SUBGROUPS] = (0.0, float(MAX_EXAMPLES))
        sets = {} if sureness is None else {"sureness": sureness.to_json()}
        outcome = self._exchange(
            ASSESS,
            task,
            tensors,
            0,
            deadline,
            kind="assess",
            header=lambda site: {
                "state": states.get(site, ""),
                "guidance": task.guidance.get(site, ""),
                "calibration": fitted.to_json(),
                **sets,
            },
            metrics=lambda site: ranges,
            asked=asked,
            quorate=False,
        )
        return {name: dict(outcome.replies[name].metrics) for name in sorted(outcome.replies)}, outcome

    def ask_finished(
        self,
        message_type: str,
        task: StageTask,
        tensors: Tensors,
        deadline: float,
        *,
        kind: str,
        header: Callable[[str], dict[str, Any]],
        metrics: Callable[[Site], Mapping[str, tuple[float, float]]],
        asked: Set[str] | None = None,
    ) -> tuple[dict[str, dict[str, float]], Outcome]:
        """Figures of a finished stage's model that sites let out, by site name; no quorum is needed.

        Args:
            message_type: Flower's.
            kind: of the request.
            header: its further fields, for each site.
            metrics: range of each figure that may come.
            asked: names of those to ask; none: everyone who is there.
        """
        outcome = self._exchange(
            message_type,
            task,
            tensors,
            0,
            deadline,
            kind=kind,
            header=header,
            metrics=metrics,
            asked=asked,
            quorate=False,
        )
        return {name: dict(outcome.replies[name].metrics) for name in sorted(outcome.replies)}, outcome

    def _exchange(
        self,
        message_type: str,
        task: StageTask,
        tensors: Tensors,
        round_index: int,
        deadline: float,
        *,
        header: Callable[[str], dict[str, Any]],
        metrics: Callable[[Site], Mapping[str, tuple[float, float]]],
        fields: Mapping[str, type] | None = None,
        reply_tensors: Tensors | None = None,
        attach_base: bool = False,
        excused: Set[int | str] = frozenset(),
        asked: Set[str] | None = None,
        kind: str = "",
        quorate: bool = True,
    ) -> Outcome:
        kind = kind or message_type
        self.refresh(deadline)
        base = {f"base/{name}": value for name, value in task.frozen.items()}
        weights = tensors_digest(tensors)
        packs: dict[bool, Packed] = {}

        def packed(with_base: bool) -> Packed:
            if with_base not in packs:
                packs[with_base] = pack({**tensors, **base} if with_base else tensors)
            return packs[with_base]

        requests = []
        for site in self.members.values():
            if asked is not None and site.name not in asked:
                continue
            common = {"run": self.spec.run_id, "arm": self.spec.arm, "stage": task.stage, "round": round_index}
            facts = {
                **self._header,
                **common,
                "site": site.name,
                "base": task.digest,
                "weights": weights,
                **header(site.name),
            }
            payload = Payload(kind, facts)
            expected = Expected(
                kind=f"{kind}.reply",
                header={**common, "site": site.name, "request": request_name(facts)},
                fields=fields or {},
                schema=schema_of(reply_tensors) if reply_tensors is not None else {},
                weighted=reply_tensors is not None,
                max_examples=site.images[0],
                reference=reply_tensors or {},
                max_norm=self.hooks.max_update_norm,
                max_steps=self.spec.stage(task.stage).local_steps(site.images[0]),
                metrics=metrics(site),
            )
            requests.append(Request(site, payload, expected, packed(attach_base), lambda: packed(True)))
        outcome = self._ask(requests, message_type, deadline, stage=task.stage, round_index=round_index, asked=asked)
        self.heads |= outcome.heads
        for name in [name for name, code in outcome.codes.items() if code == WITHDRAWN]:
            del self.members[name]
            self.events.emit("site_withdrew", site=name, stage=task.stage, round=round_index)
        for name in [name for name, code in outcome.codes.items() if code == STUDY_MISSING and name in self.members]:
            self._known.discard(self.members.pop(name).node)  # its folder is another: it gets the study again
        good = set(outcome.replies) | {name for name, code in outcome.codes.items() if code in excused}
        if quorate:
            self.check_quorum(f"stage {task.stage}, round {round_index}", good, outcome.missing, asked)
        return outcome


def site_update(site: str, reply: Payload) -> SiteUpdate:
    """A screened reply as an algorithm's server half sees it."""
    extras = {name: value for name, value in reply.tensors.items() if name.startswith(EXTRA)}
    return SiteUpdate(
        site=site,
        tensors={name: value for name, value in reply.tensors.items() if name not in extras},
        num_examples=reply.header["num_examples"],
        extras=extras,
        steps=reply.metrics.get("steps"),
        initial_loss=reply.metrics.get("initial_loss"),
    )
