"""The sites of a run, as the coordinator reaches them: what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from flwr.app import MessageType

from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from fed_diffmic.exchange.failures import POLICY_METRICS, WITHDRAWN
from fed_diffmic.exchange.payload import Packed, Payload, pack, request_name
from fed_diffmic.exchange.screening import Expected, schema_of
from fed_diffmic.files import tensors_digest
from server.presence import Presence
from server.replies import Outcome, Request, Site

ANY = (-1e300, 1e300)
POSITIVE = (0.0, 1e300)


@dataclass(frozen=True)
class StageTask:
    """What a stage's requests have in common.

    Attributes:
        stage: name.
        frozen: the part of the base that never changes, named by its digest.
    """

    stage: str
    frozen: Tensors
    digest: str

    @staticmethod
    def of(stage: str, frozen: Tensors) -> StageTask:
        """With the digest computed once."""
        return StageTask(stage, frozen, tensors_digest(frozen))


class Sites(Presence):
    """The sites of a run: whoever is there is asked to train and to evaluate."""

    def train(
        self,
        task: StageTask,
        current: Tensors,
        states: Mapping[str, str],
        ledgers: Mapping[str, str],
        round_index: int,
        deadline: float,
    ) -> tuple[list[SiteUpdate], dict[str, str], Outcome]:
        """One local update at every site.

        Args:
            task: the stage.
            current: the round's global tensors.
            states: digest of the state that each site builds on.
            ledgers: head of each site's privacy ledger as it was last seen; the site compares.
            round_index: from 1.
            deadline: monotonic seconds.

        Returns:
            screened updates in the order of site names, digests of the sites' new states, the exchange.

        Raises:
            RoundError: the quorum was missed; names the missing sites.
        """
        ranges = {"loss": ANY, "steps": POSITIVE, "seconds": POSITIVE}
        outcome = self._exchange(
            MessageType.TRAIN,
            task,
            current,
            round_index,
            deadline,
            header=lambda site: {"state": states.get(site, ""), "ledger": ledgers.get(site, "")},
            fields={"state": str, "ledger": str, "claim": str},
            reply_tensors=current,
            metrics=lambda _: ranges,
            attach_base=round_index == 1,
        )
        names = sorted(outcome.replies)
        updates = [
            SiteUpdate(name, outcome.replies[name].tensors, outcome.replies[name].header["num_examples"])
            for name in names
        ]
        return updates, {name: outcome.replies[name].header["state"] for name in names}, outcome

    def evaluate(
        self,
        task: StageTask,
        tensors: Tensors,
        prior: Sequence[float],
        round_index: int,
        deadline: float,
        *,
        sums: bool = False,
    ) -> tuple[dict[str, dict[str, float]], Outcome]:
        """Figures of ``tensors`` on every site's validation images, by site name.

        Args:
            prior: the consortium's class prior ``(C,)``.
            sums: ask for the calibration's sums too; a site whose policy keeps them back counts for the quorum.

        Raises:
            RoundError: the quorum was missed.
        """

        def ranges(site: Site) -> dict[str, tuple[float, float]]:
            result = dict.fromkeys(("auroc_macro", "balanced_accuracy", "accuracy"), (0.0, 1.0))
            result |= {"loss": POSITIVE, "num_examples": (0.0, float(site.images[1]))}
            return {**result, "nll/": POSITIVE} if sums else result

        outcome = self._exchange(
            MessageType.EVALUATE,
            task,
            tensors,
            round_index,
            deadline,
            header=lambda _: {"prior": [float(p) for p in prior], "sums": sums, "split": "val"},
            metrics=ranges,
            excused={POLICY_METRICS} if sums else set(),
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
    ) -> Outcome:
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
            common = {"run": self.spec.run_id, "arm": self.spec.arm, "stage": task.stage, "round": round_index}
            asked = {
                **self._header,
                **common,
                "site": site.name,
                "base": task.digest,
                "weights": weights,
                **header(site.name),
            }
            payload = Payload(message_type, asked)
            expected = Expected(
                kind=f"{message_type}.reply",
                header={**common, "site": site.name, "request": request_name(asked)},
                fields=fields or {},
                schema=schema_of(reply_tensors) if reply_tensors is not None else {},
                weighted=reply_tensors is not None,
                max_examples=site.images[0],
                reference=reply_tensors or {},
                max_norm=self.hooks.max_update_norm,
                metrics=metrics(site),
            )
            requests.append(Request(site, payload, expected, packed(attach_base), lambda: packed(True)))
        outcome = self._ask(requests, message_type, deadline, stage=task.stage, round_index=round_index)
        for name in [name for name, code in outcome.codes.items() if code == WITHDRAWN]:
            del self.members[name]
            self.events.emit("site_withdrew", site=name, stage=task.stage, round=round_index)
        good = set(outcome.replies) | {name for name, code in outcome.codes.items() if code in excused}
        self._check_quorum(f"stage {task.stage}, round {round_index}", good, outcome.missing)
        return outcome
