"""Who is there: nodes become sites by what they say and by whose key they have; quorum.

Every wait has a bound. A node that fails to answer is asked again after a pause that doubles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, MutableMapping, Sequence, Set
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
from server.replies import Channel, Events, Request, ask
from server.terms import RunTerms

REMEDY = "Look at the named sites' own logs; the run can be continued with --resume."
LONGEST_PAUSE_S = 60.0
APPROVAL_PAUSE_S = 300.0
"""Longest pause before a site whose people have not approved the study is asked again."""
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
        self._channel = Channel(grid, events, terms.poll_s, self.hooks)
        self._known: set[int] = set()
        self._patience: dict[int, tuple[float, float]] = {}
        self._approving: set[int] = set()
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
            missing |= self.refresh(end)
            if self.names is not None:
                settled = set(self.names) <= set(self.members)
            else:
                settled = bool(members_before) and members_before == set(self.members)
            if not settled:
                pause = self.terms.poll_s if self.names is not None else max(self.terms.poll_s, 1.0)
                time.sleep(max(0.0, min(pause, end - time.monotonic())))
        gone = {name: why for name, why in missing.items() if name not in self.members}
        self.check_quorum("looking for the sites", set(self.members), gone)

    def _end(self, until: float, deadline: float) -> float:
        return deadline if self._approving and len(self.members) < self._needed() else until

    def refresh(self, deadline: float) -> dict[str, str]:
        """Ask nodes not known yet who they are; a site that came back as another node is found again.

        Returns:
            why nodes that were asked did not become sites.
        """
        bound = None if self.hooks.names_of_nodes is None else dict(self.hooks.names_of_nodes())
        if bound is not None:
            self._drop_removed(bound)
        now, present = time.monotonic(), set(self._channel.grid.get_node_ids()) - self._known
        nodes = [
            Site(self.hooks.called(node, bound), node)
            for node in sorted(present)
            if (bound is None or self._expected(bound.get(node))) and self._patience.get(node, (0.0, 0.0))[0] <= now
        ]
        if not nodes:
            return {}
        requests = [self._question(node, "" if bound is None else bound[node.node]) for node in nodes]
        outcome = self._ask(requests, MessageType.QUERY, deadline, stage="", round_index=0)
        for name, claimed in sorted(self._claims(nodes, outcome, bound).items()):
            if len(claimed) > 1:
                outcome.missing[name] = "more than one node says that it is this site"
                self.refused(name, "duplicate")
                continue
            site = self._as_first_said(claimed[0])
            self.members[name] = site
            images = dict(zip(PARTS, site.images, strict=True))
            self.events.emit("site_found", site=name, images=images, class_counts=list(site.class_counts))
            facts = {"run": self.spec.run_id, "site": name, "key": self.hooks.fingerprint_of(name)}
            self.hooks.log("site", **facts, label="" if bound else self.hooks.called(site.node, bound))
        return outcome.missing

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
    ) -> Outcome:
        facts = {"arm": self.spec.arm, "stage": stage, "round": round_index}
        needed = self._needed(asked) if stage else 0
        return ask(self._channel, requests, message_type=message_type, deadline=deadline, facts=facts, needed=needed)

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
