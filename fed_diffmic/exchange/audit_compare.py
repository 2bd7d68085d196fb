"""A site's audit log against the coordinator's: every payload that one side names, the other must have.

Both logs must first be found whole (:func:`fed_diffmic.exchange.audit.verify`). A crash on either side leaves traces
that are no fraud (a payload that was sent and never arrived, a request without an answer); they are notes. What no
crash explains is a problem.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fed_diffmic.exchange.audit_findings import NOTE, PROBLEM, Finding, where
from fed_diffmic.exchange.audit_heads import site_heads
from fed_diffmic.exchange.audit_lines import Head, Line
from fed_diffmic.exchange.audit_rounds import RESTARTS, rounds

__all__ = ["NOTE", "PROBLEM", "Finding", "anchors", "compare", "names_of"]

SAME = ("study", "weights", "base")


@dataclass
class _Asked:
    """What a log says about one request, by the request's name."""

    where: str = ""
    requests: list[Line] = field(default_factory=list)
    payloads: dict[str, Line] = field(default_factory=dict)
    failures: list[Line] = field(default_factory=list)


def compare(site_lines: Sequence[Line], coordinator_lines: Sequence[Line], *, site: str, run: str) -> list[Finding]:
    """Everything in which the two logs differ for one site and one run.

    Args:
        site_lines: the site's log.
        coordinator_lines: the coordinator's log.
        site: its name.
        run: the run's name.
    """
    here = _collect([line for line in site_lines if line.facts.get("run") == run], "task", "payload", {"refusal"})
    names = names_of(coordinator_lines, site)
    mine = [line for line in coordinator_lines if line.facts.get("run") == run and line.facts.get("site") in names]
    there = _collect(mine, "request", "reply", {"failure", "refusal"})
    restarts = [line.n for line in coordinator_lines if line.kind in RESTARTS]
    findings = [f for name in sorted(here.keys() | there.keys()) for f in _request(here[name], there[name], restarts)]
    findings.extend(rounds(site_lines, coordinator_lines, site=site, run=run, names=names))
    if not here and not there:
        findings.append(Finding(NOTE, f"neither log says anything about the run {run} and the site {site}"))
    return findings


def anchors(coordinator_lines: Sequence[Line], *, site: str) -> list[Head]:
    """The heads of a site's chain that the coordinator saw, in all runs, as its log holds them beside the replies."""
    seen, _ = site_heads(coordinator_lines, (), site=site, names=names_of(coordinator_lines, site))
    return [one.head for one in seen]


def names_of(coordinator_lines: Sequence[Line], site: str) -> set[str]:
    """What the coordinator's log calls a site: its name, and what it was called before it had said that.

    Without a roster that is a label made up for the run; older logs have Flower's number for the node.
    """
    lines = [line for line in coordinator_lines if line.kind == "site" and line.facts.get("site") == site]
    return {site} | {str(line.facts[name]) for line in lines for name in ("node", "label") if line.facts.get(name)}


def _collect(lines: Sequence[Line], request: str, payload: str, failures: set[str]) -> defaultdict[str, _Asked]:
    found: defaultdict[str, _Asked] = defaultdict(_Asked)
    for line in lines:
        name = line.facts.get("request")
        if not isinstance(name, str):
            continue
        asked = found[name]
        asked.where = asked.where or where(line)
        if line.kind == request:
            asked.requests.append(line)
        elif line.kind == payload:
            asked.payloads[str(line.facts.get("digest"))] = line
        elif line.kind in failures:
            asked.failures.append(line)
    return found


def _request(here: _Asked, there: _Asked, restarts: Sequence[int]) -> Iterator[Finding]:
    place = here.where or there.where
    if here.requests and not there.requests:
        yield Finding(PROBLEM, f"{place}: the site was asked, and the coordinator's log does not say so")
    elif here.requests:
        yield from _asked_otherwise(place, here, there)
    for digest, line in there.payloads.items():
        if digest not in here.payloads:
            yield Finding(PROBLEM, f"{place}: the coordinator has a payload {digest[:16]} that the site did not send")
        elif here.payloads[digest].facts.get("bytes") != line.facts.get("bytes"):
            yield Finding(PROBLEM, f"{place}: the two logs give payload {digest[:16]} different numbers of bytes")
    lost = [digest for digest in here.payloads if digest not in there.payloads]
    if lost:
        yield _lost(place, lost, here, there, restarts)
    answered = bool(here.payloads or here.failures)
    if there.requests and not here.requests and not there.payloads:
        yield Finding(NOTE, f"{place}: the request did not reach the site ({_why(there)})")
    elif there.requests and here.requests and not answered and not there.payloads:
        yield Finding(NOTE, f"{place}: the site wrote down no answer; it may have been stopped")


def _asked_otherwise(place: str, here: _Asked, there: _Asked) -> Iterator[Finding]:
    """A request that has one name on both sides must be one: what it said, and what it named by digest."""
    if {line.facts.get("digest") for line in here.requests} - {line.facts.get("digest") for line in there.requests}:
        yield Finding(PROBLEM, f"{place}: the site was asked something else than the coordinator's log says")
    for name in SAME:
        ours = {str(line.facts[name]) for line in here.requests if name in line.facts}
        theirs = {str(line.facts[name]) for line in there.requests if name in line.facts}
        if ours and theirs and ours != theirs:
            yield Finding(PROBLEM, f"{place}: the two logs name a different {name}")


def _lost(place: str, lost: Sequence[str], here: _Asked, there: _Asked, restarts: Sequence[int]) -> Finding:
    named = f"{place}: payload {', '.join(digest[:16] for digest in lost)}"
    if any(digest in there.payloads for digest in here.payloads):
        return Finding(NOTE, f"{named} was sent and did not arrive; it was sent again")
    if there.failures:
        return Finding(NOTE, f"{named} was sent and did not arrive ({_why(there)})")
    last = max((line.n for line in there.requests), default=0)
    if there.requests and any(n > last for n in restarts):
        return Finding(NOTE, f"{named} was sent; the coordinator was started again before it came")
    return Finding(PROBLEM, f"{named} was sent, and the coordinator's log does not have it")


def _why(there: _Asked) -> str:
    if not there.failures:
        return "no outcome is written down"
    facts = there.failures[-1].facts
    return str(facts.get("reason", f"refused: {facts.get('code')}"))
