"""Who is there: nodes become sites by what they say and by whose key they have; quorum.

Every wait has a bound. A node that fails to answer is asked again after a pause that doubles. One that says nothing at
all is heard whenever it does; nobody else waits for it longer than :data:`NEW_S` where the quorum is there without it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence, Set
from dataclasses import replace
from typing import Any

from flwr.app import MessageType
from flwr.serverapp import Grid

from fed_diffmic.config.spec import RunSpec, without_paths
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.failures import STUDY_WAITS, WITHDRAWN
from fed_diffmic.exchange.payload import Payload, pack, request_name
from fed_diffmic.exchange.screening import MAX_EXAMPLES, REFUSALS, Expected
from fed_diffmic.exchange.study import Study
from server.exchange import Outcome, Site
from server.hooks import Hooks
from server.replies import Asking, Channel, Events, Request, Take, ask, hear
from server.terms import RunTerms

REMEDY = "Look at the named sites' own logs; the run can be continued with --resume."
LONGEST_PAUSE_S = 60.0
APPROVAL_PAUSE_S = 300.0
"""Longest pause before a site whose people have not approved the study is asked again."""
NEW_S, LOOK_S = 30.0, 1.0
"""How long a round waits for nodes that it has just asked who they are, and how long for those that it asked before."""
SILENT = "it was asked who it is and has not answered"
PARTS = ("train", "val", "test")


class Presence:
    """The sites of a run, as far as being there goes.

    Args:
        grid: Flower's, in process or real.
        spec: sent to the sites without the coordinator's paths.
        events: where facts go.
        terms: which sites are expected, how many must answer, how long they may take to appear.
        hooks: what a real coordinator adds.
        study: of the run; the first request brings it, every request names it.
        claims: what each site said of its images when it was first found in this run; added to. What a site says later
            does not change it.
    """

    def __init__(
        self,
        grid: Grid,
        spec: RunSpec,
        events: Events,
        terms: RunTerms,
        *,
        hooks: Hooks | None = None,
        study: Study | None = None,
        claims: MutableMapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.claims = {} if claims is None else claims
        self.spec = spec
        self.events = events
        self.terms = terms
        self.names = None if terms.sites is None else sorted(terms.sites)
        self.hooks = hooks or Hooks()
        self.members: dict[str, Site] = {}
        self.heads: dict[str, Head] = {}
        self.withdrawn: set[str] = set()
        self._channel = Channel(grid, events, terms.poll_s, self.hooks)
        self._known: set[int] = set()
        self._patience: dict[int, tuple[float, float]] = {}
        self._approving: set[int] = set()
        self._questions: dict[str, Request] = {}  # that wait for an answer, by the message's id
        self._told: Set[str] = set()  # of those, which it was said of
        self._header = {"spec": without_paths(spec).to_json(), "run": spec.run_id, "arm": spec.arm}
        self._brings: dict[str, str] = {}
        if study is not None:
            self._header["study"] = study.digest
            self._brings = {"document": study.text, "signature": study.signature}

    def find(self, deadline: float) -> None:
        """Wait, within bounds, for the sites to appear and ask each who it is.

        Sites whose people have yet to approve the study are waited for until ``deadline`` if the quorum needs them, all
        others for ``join_s``.

        Raises:
            RoundError: fewer than the quorum came in time.
        """
        until = min(time.monotonic() + self.terms.join_s, deadline)
        missing: dict[str, str] = {}
        settled = False
        while not settled and time.monotonic() < (end := self._end(until, deadline)):
            members_before = set(self.members)
            missing |= self._look(end, LOOK_S)
            if self.names is not None:
                settled = set(self.names) <= set(self.members)
            else:
                settled = bool(members_before) and members_before == set(self.members) and not self._questions
            if not settled:
                pause = self.terms.poll_s if self.names is not None else max(self.terms.poll_s, 1.0)
                time.sleep(max(0.0, min(pause, end - time.monotonic())))
        missing |= self._say_silent()
        gone = {name: why for name, why in missing.items() if name not in self.members}
        self.check_quorum("looking for the sites", set(self.members), gone)

    def _end(self, until: float, deadline: float) -> float:
        return deadline if self._approving and len(self.members) < self._needed() else until

    def refresh(self, deadline: float) -> None:
        """Ask nodes not known yet who they are; a site that came back as another node is found again.

        They are waited for until ``deadline`` if the quorum needs them, else for :data:`NEW_S`: those who are there
        would otherwise not be asked at all, because of one that says nothing.
        """
        self._look(deadline, NEW_S)
        while self._questions and len(self.members) < self._needed() and time.monotonic() < deadline:
            self._look(deadline, LOOK_S)
        self._say_silent()

    def _say_silent(self) -> dict[str, str]:
        """Who was asked and has not answered; it is said once of each."""
        for message_id, request in self._questions.items():
            if message_id not in self._told:
                facts = {"arm": self.spec.arm, "stage": "", "round": 0}
                self.events.emit("site_failed", site=request.site.name, code="deadline", reason=SILENT, **facts)
        self._told = set(self._questions)
        return {request.site.name: SILENT for request in self._questions.values()}

    def _look(self, deadline: float, wait_s: float) -> dict[str, str]:
        """Ask nodes not known yet, and hear who of those that were asked says what it is.

        Args:
            deadline: until which a node may answer.
            wait_s: how long it is waited for here, if some were not asked before.

        Returns:
            why nodes that were asked did not become sites.
        """
        bound = None if self.hooks.names_of_nodes is None else dict(self.hooks.names_of_nodes())
        if bound is not None:
            self._drop_removed(bound)
        asked = {request.site.node for request in self._questions.values()}
        now, present = time.monotonic(), set(self._channel.grid.get_node_ids()) - self._known - asked
        nodes = [
            Site(self.hooks.called(node, bound), node)
            for node in sorted(present)
            if (bound is None or self._expected(bound.get(node))) and self._patience.get(node, (0.0, 0.0))[0] <= now
        ]
        if not nodes and not self._questions:
            return {}
        requests = [self._question(node, "" if bound is None else bound[node.node]) for node in nodes]
        answered, outcome = self._heard_of(requests, deadline, now + (wait_s if nodes else LOOK_S))
        for name, claimed in sorted(self._claims(answered, outcome, bound).items()):
            if len(claimed) > 1:
                outcome.missing[name] = "more than one node says that it is this site"
                self.refused(name, "duplicate")
                continue
            site = self._as_first_said(claimed[0])
            self.members[name] = site
            self.withdrawn.discard(name)
            images = dict(zip(PARTS, site.images, strict=True))
            self.events.emit("site_found", site=name, images=images, class_counts=list(site.class_counts))
            facts = {"run": self.spec.run_id, "site": name, "key": self.hooks.fingerprint_of(name)}
            self.hooks.log("site", **facts, label="" if bound else self.hooks.called(site.node, bound))
        return outcome.missing

    def _heard_of(self, requests: Sequence[Request], deadline: float, until: float) -> tuple[list[Site], Outcome]:
        """Ask who nodes are; those of them, and of whom was asked before, that answered or failed, and what they said.

        Args:
            deadline: until which they may answer.
            until: when nobody is waited for any longer here.
        """
        asking = Asking(self._channel, MessageType.QUERY, deadline, {"arm": self.spec.arm, "stage": "", "round": 0})
        asked = [*(request.site for request in self._questions.values()), *(request.site for request in requests)]
        asking.open |= self._questions
        for request in sorted(requests, key=lambda r: r.site.name):
            asking.send(request)
        hear(self._channel, asking, 0, min(deadline, until))
        self._questions = dict(asking.open)
        asking.open.clear()  # whoever says nothing yet has not failed
        asking.end()
        silent = {request.site.node for request in self._questions.values()}
        return [site for site in asked if site.node not in silent], asking.outcome

    def _as_first_said(self, site: Site) -> Site:
        """The site with the numbers that it gave first: it must not grow where that suits it."""
        said = self.claims.setdefault(site.name, {"images": list(site.images), "classes": list(site.class_counts)})
        train, val, test = said["images"]
        return replace(site, images=(train, val, test), class_counts=tuple(said["classes"]))

    def _question(self, node: Site, name: str) -> Request:
        """Who are you; with what was seen of the privacy ledger of the site that the node's key stands for."""
        header = {**self._header, **self._brings, "ledger": self.hooks.echo(name) if name else ""}
        expected = Expected(
            kind="query.reply",
            header={"run": self.spec.run_id, "arm": self.spec.arm, "request": request_name(header)},
            fields={"site": str, "images": list, "class_counts": list},
        )
        return Request(node, Payload("query", header), expected, pack({}))

    def _claims(
        self, nodes: Sequence[Site], outcome: Outcome, bound: Mapping[int, str] | None
    ) -> dict[str, list[Site]]:
        """Who the nodes say they are, where that can be; the others are refused or asked again after a pause."""
        claims: dict[str, list[Site]] = {}
        most = {} if self.hooks.most_images is None else self.hooks.most_images()
        for node in nodes:
            if node.name not in outcome.replies:
                self._not_yet(node, outcome, bound)
                continue
            self._known.add(node.node)
            self._approving.discard(node.node)
            site = site_of(node.node, outcome.replies[node.name].header, self.spec.num_classes)
            if site is None or (self.names is not None and site.name not in self.names):
                outcome.missing[node.name] = "it did not say a name and counts that fit the run"
                self.refused(node.name, "site")
            elif bound is not None and bound[node.node] != site.name:
                outcome.missing[node.name] = REFUSALS["name"]
                self.refused(bound[node.node], "name")
            elif (code := claim_refused(site, most)) is not None:
                outcome.missing[site.name] = REFUSALS[code]
                self.refused(site.name, code)
                self._known.discard(node.node)  # the roster may be changed, or the site's data: it is asked again
                self._patience[node.node] = (time.monotonic() + LONGEST_PAUSE_S, LONGEST_PAUSE_S)
            else:
                claims.setdefault(site.name, []).append(site)
        return claims

    def _expected(self, name: str | None) -> bool:
        """Whether the roster's site takes part in this run; any other is not asked, and told nothing of it."""
        return name is not None and (self.names is None or name in self.names)

    def _not_yet(self, node: Site, outcome: Outcome, bound: Mapping[int, str] | None) -> None:
        """A node that did not say who it is: it is asked again after a pause that doubles, unless it withdrew."""
        code = outcome.codes.get(node.name)
        waits = code == STUDY_WAITS
        (self._approving.add if waits else self._approving.discard)(node.node)
        if code == WITHDRAWN:
            self._known.add(node.node)
            self.withdrawn |= {(bound or {}).get(node.node, node.name)}
        longest = APPROVAL_PAUSE_S if waits else LONGEST_PAUSE_S
        pause = min(2.0 * self._patience.get(node.node, (0.0, 5.0 * self.terms.poll_s))[1], longest)
        self._patience[node.node] = (time.monotonic() + pause, pause)
        name = (bound or {}).get(node.node)
        if name is None or node.name not in outcome.missing:
            return
        reason = outcome.missing[name] = outcome.missing.pop(node.name)  # by its name in the roster, as people know it
        if waits:
            self.events.emit("site_waits", site=name, code=code, reason=reason, again_s=pause, stage="", round=0)

    def _drop_removed(self, bound: Mapping[int, str]) -> None:
        """Sites that the roster no longer names are asked for nothing more; if they come back, they are found again."""
        for name, site in list(self.members.items()):
            if bound.get(site.node) != name:
                del self.members[name]
                self._known.discard(site.node)
                self.refused(name, "roster")
        self._questions = {n: r for n, r in self._questions.items() if bound.get(r.site.node) == r.site.name}

    def refused(self, site: str, code: str, stage: str = "", round_index: int = 0) -> None:
        """Say that a site is refused, and why (:data:`fed_diffmic.exchange.screening.REFUSALS`)."""
        self.events.emit("site_refused", site=site, code=code, reason=REFUSALS[code], stage=stage, round=round_index)
        where = {"stage": stage, "round": round_index} if stage else {}
        self.hooks.log("refusal", run=self.spec.run_id, site=site, code=code, **where)

    def _ask(
        self,
        requests: Sequence[Request],
        message_type: str,
        deadline: float,
        *,
        stage: str,
        round_index: int,
        asked: Set[str] | None = None,
        take: Take | None = None,
    ) -> Outcome:
        facts = {"arm": self.spec.arm, "stage": stage, "round": round_index}
        needed = self._needed(asked) if stage else 0
        return ask(
            self._channel, requests, message_type=message_type, deadline=deadline, facts=facts, needed=needed, take=take
        )

    def hand_over(
        self, request: Callable[[Site, Mapping[str, Any]], Request], message_type: str, deadline: float, whom: Set[str]
    ) -> Outcome:
        """Ask each of ``whom`` that is there something about the whole run; nobody is waited for who is not.

        Args:
            request: makes a site's, from the header fields of every request of the run.
        """
        self._look(deadline, NEW_S)
        self._say_silent()
        requests = [request(site, self._header) for name, site in sorted(self.members.items()) if name in whom]
        outcome = self._ask(requests, message_type, deadline, stage="", round_index=0)
        self.heads |= outcome.heads
        return outcome

    def everyone(self) -> set[str]:
        """Names of all sites that are expected, or there."""
        return set(self.names or ()) | set(self.members)

    def _needed(self, asked: Set[str] | None = None) -> int:
        return max(1, math.ceil(self.terms.quorum * len(self.everyone() if asked is None else asked) - 1e-9))

    def check_quorum(
        self, what: str, good: set[str], missing: Mapping[str, str], asked: Set[str] | None = None
    ) -> None:
        """Whether enough sites replied well.

        Args:
            what: was asked, for the message.
            good: names of those that did.
            missing: why others did not.
            asked: names of those asked; none: everyone.

        Raises:
            RoundError: fewer than the quorum; names the others and why.
        """
        everyone, needed = set(self.everyone() if asked is None else asked), self._needed(asked)
        reasons = dict.fromkeys(everyone - good, "it is not connected") | dict(missing)
        if len(good) < needed:
            named = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items())) or "no site is connected"
            raise RoundError(
                f"{what}: {len(good)} of {len(everyone)} sites replied well, {needed} needed ({named})", REMEDY
            )


def site_of(node: int, header: Mapping[str, Any], num_classes: int) -> Site | None:
    """The site that a reply describes, or none if it is not one that can take part.

    A number of images that the site keeps back is null; one of training images makes it a site of none, which
    :func:`claim_refused` names.
    """
    name, images, counts = header["site"], header["images"], header["class_counts"]
    whole = all(n is None or (type(n) is int and 0 <= n <= MAX_EXAMPLES) for n in [*images, *counts])
    named = 0 < len(name) <= 128 and name.isprintable() and not set(name) & set("/\\|")
    if not whole or not named or len(images) != len(PARTS) or len(counts) != num_classes or images[0] == 0:
        return None
    return Site(name, node, (images[0] or 0, images[1], images[2]), tuple(counts))


def claim_refused(site: Site, most: Mapping[str, int]) -> str | None:
    """Why a site's numbers keep it out of the run, or none.

    Args:
        most: the most images that a site may say it has, for those whose entry in the roster says so.
    """
    if site.images[0] == 0:
        return "suppressed"
    if site.name in most and sum(n or 0 for n in site.images) > most[site.name]:
        return "claim"
    return None
