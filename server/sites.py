"""The sites of a run, as the coordinator reaches them: who is there, what they are asked, quorum."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import MessageType
from flwr.serverapp import Grid

from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.payload import Packed, Payload, pack, request_name
from fed_diffmic.exchange.screening import MAX_EXAMPLES, Expected, schema_of
from fed_diffmic.files import tensors_digest
from fed_diffmic.spec import RunSpec, without_paths
from server.replies import Events, Outcome, Request, Site, ask

REMEDY = "Look at the named sites' own logs; the run can be continued with --resume."
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


class Sites:
    """The sites of a run.

    Args:
        grid: Flower's, in process or real.
        spec: sent to the sites without the coordinator's paths.
        events: where facts go.
        names: the sites that are expected; none: whoever is there.
        quorum: share of the sites whose good replies are needed.
        join_s: the longest wait for sites to appear.
        poll_s: pause between looking for replies.
    """

    def __init__(
        self,
        grid: Grid,
        spec: RunSpec,
        events: Events,
        *,
        names: Sequence[str] | None = None,
        quorum: float = 1.0,
        join_s: float = 300.0,
        poll_s: float = 0.1,
    ) -> None:
        self.grid = grid
        self.spec = spec
        self.events = events
        self.names = None if names is None else sorted(names)
        self.quorum = quorum
        self.join_s = join_s
        self.poll_s = poll_s
        self.members: dict[str, Site] = {}
        self._known: set[int] = set()
        self._header = {"spec": without_paths(spec).to_json(), "run": spec.run_id, "arm": spec.arm}

    # ---- who is there ------------------------------------------------------------------------
    def find(self, deadline: float) -> None:
        """Wait, within bounds, for the sites to appear and ask each who it is.

        Raises:
            RoundError: fewer than the quorum came in time.
        """
        until = min(time.monotonic() + self.join_s, deadline)
        missing: dict[str, str] = {}
        settled = False
        while not settled and time.monotonic() < until:
            before = set(self.members)
            missing |= self.refresh(until)
            if self.names is not None:
                settled = set(self.names) <= set(self.members)
            else:
                settled = bool(before) and before == set(self.members)
            if not settled:
                pause = self.poll_s if self.names is not None else max(self.poll_s, 1.0)
                time.sleep(max(0.0, min(pause, until - time.monotonic())))
        gone = {name: why for name, why in missing.items() if name not in self.members}
        self._check_quorum("looking for the sites", set(self.members), gone)

    def refresh(self, deadline: float) -> dict[str, str]:
        """Ask nodes not known yet who they are; a site that came back as another node is found again.

        Returns:
            why nodes that were asked did not become sites.
        """
        nodes = [Site(f"node {node}", node) for node in sorted(set(self.grid.get_node_ids()) - self._known)]
        if not nodes:
            return {}
        payload = Payload("query", self._header)
        expected = Expected(
            kind="query.reply",
            header={"run": self.spec.run_id, "arm": self.spec.arm, "request": request_name(self._header)},
            fields={"site": str, "images": list, "class_counts": list},
        )
        requests = [Request(node, payload, expected, pack({})) for node in nodes]
        outcome = self._ask(requests, MessageType.QUERY, deadline, stage="", round_index=0)
        claims: dict[str, list[Site]] = {}
        for node in nodes:
            if node.name not in outcome.replies:
                continue  # asked again at the next refresh
            self._known.add(node.node)
            site = _site(node.node, outcome.replies[node.name].header, self.spec.num_classes)
            if site is None or (self.names is not None and site.name not in self.names):
                outcome.missing[node.name] = "it did not say a name and counts that fit the run"
                self.events.emit("site_refused", site=node.name, code="site", stage="", round=0)
            else:
                claims.setdefault(site.name, []).append(site)
        for name, claimed in sorted(claims.items()):
            if len(claimed) > 1:
                outcome.missing[name] = "more than one node says that it is this site"
                self.events.emit("site_refused", site=name, code="duplicate", stage="", round=0)
                continue
            self.members[name] = claimed[0]
            images = dict(zip(("train", "val", "test"), claimed[0].images, strict=True))
            self.events.emit("site_found", site=name, images=images, class_counts=list(claimed[0].class_counts))
        return outcome.missing

    # ---- what they are asked -----------------------------------------------------------------
    def train(
        self, task: StageTask, current: Tensors, states: Mapping[str, str], round_index: int, deadline: float
    ) -> tuple[list[SiteUpdate], dict[str, str], Outcome]:
        """One local update at every site.

        Args:
            task: the stage.
            current: the round's global tensors.
            states: digest of the state that each site builds on.
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
            header=lambda site: {"state": states.get(site, "")},
            fields={"state": str},
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
            sums: ask for the calibration's sums too.

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
                metrics=metrics(site),
            )
            requests.append(Request(site, payload, expected, packed(attach_base), lambda: packed(True)))
        outcome = self._ask(requests, message_type, deadline, stage=task.stage, round_index=round_index)
        self._check_quorum(f"stage {task.stage}, round {round_index}", set(outcome.replies), outcome.missing)
        return outcome

    def _ask(
        self, requests: Sequence[Request], message_type: str, deadline: float, *, stage: str, round_index: int
    ) -> Outcome:
        facts = {"arm": self.spec.arm, "stage": stage, "round": round_index}
        return ask(
            self.grid,
            requests,
            self.events,
            message_type=message_type,
            deadline=deadline,
            facts=facts,
            poll_s=self.poll_s,
        )

    def _check_quorum(self, what: str, good: set[str], missing: Mapping[str, str]) -> None:
        everyone = set(self.names or ()) | set(self.members)
        reasons = dict.fromkeys(everyone - good, "it is not connected") | dict(missing)
        needed = max(1, math.ceil(self.quorum * len(everyone) - 1e-9))
        if len(good) < needed:
            named = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items())) or "no site is connected"
            raise RoundError(
                f"{what}: {len(good)} of {len(everyone)} sites replied well, {needed} needed ({named})", REMEDY
            )


def _site(node: int, header: Mapping[str, Any], num_classes: int) -> Site | None:
    """The site that a reply describes, or none if it is not one that can take part."""
    name, images, counts = header["site"], header["images"], header["class_counts"]
    whole = all(type(n) is int and 0 <= n <= MAX_EXAMPLES for n in [*images, *counts])
    named = 0 < len(name) <= 128 and name.isprintable() and not set(name) & set("/\\|")
    if not whole or not named or len(images) != 3 or len(counts) != num_classes or images[0] == 0:
        return None
    return Site(name, node, (images[0], images[1], images[2]), tuple(counts))
