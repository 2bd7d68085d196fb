"""A final model against one site's own audit log: is it what that site was sent, and last asked about?

The site wrote down, before it computed anything, the digests of the weights and of the base of every request. The
coordinator cannot change that log; so a model that was exchanged after the last round, or made up with all its rounds,
differs from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fed_diffmic.exchange.audit_facts import value_digest
from fed_diffmic.exchange.audit_findings import NOTE, PROBLEM, Finding
from fed_diffmic.exchange.audit_heads import Seen
from fed_diffmic.exchange.audit_lines import Head, Line

ABOUT_RESULT = ("evaluate", "conform", "assess")
AFTER_ALL = ("deliver", "query")
"""What is asked when the statement is written: the model is sent, to whoever is there by then."""


def model_findings(
    statement: Mapping[str, Any],
    calibration: Mapping[str, Any],
    site_lines: Sequence[Line],
    seen: Sequence[Seen],
    *,
    site: str,
    run: str,
    sureness: Mapping[str, Any] | None = None,
) -> Iterator[Finding]:
    """Everything in which a final model's statement differs from what a site wrote down.

    Args:
        statement: of the model, its signature and its binding verified.
        calibration: of each stage of the model, as JSON values.
        site_lines: the site's log, verified.
        seen: heads of the coordinator's chain in that log, their signatures verified.
        site: its name.
        run: the run's name.
        sureness: prediction sets of each stage of the model that has them, as JSON values; none: they are not compared.
    """
    mine = [line for line in site_lines if line.facts.get("run") == run]
    stages = statement.get("stages")
    if not isinstance(stages, dict):
        yield Finding(PROBLEM, "the model's statement does not bind it to its rounds: an earlier version made it")
        stages = {}
    for stage, bound in sorted(stages.items()):
        yield from _stage(mine, str(stage), bound, calibration)
        if sureness is not None:
            yield from _sets(mine, str(stage), sureness)
    yield from _payloads(statement, mine, site)
    yield from _heads(statement, site_lines, seen, site)


def _stage(
    lines: Sequence[Line], stage: str, bound: Mapping[str, Any], calibration: Mapping[str, Any]
) -> Iterator[Finding]:
    asked = [n for n in lines if n.kind == "task" and n.facts.get("stage") == stage and n.facts.get("weights")]
    last = [n for n in asked if n.facts.get("task") in ABOUT_RESULT and n.facts.get("round") == 0]
    chosen = [n for n in asked if n.facts.get("task") == "evaluate" and n.facts.get("round") == bound.get("round")]
    for line, when in [(n, "at the end") for n in last] + [(n, f"in round {bound.get('round')}") for n in chosen]:
        for fact, name in (("weights", "candidate"), ("base", "base")):
            if line.facts.get(fact) != bound.get(name):
                text = f"stage {stage}: {when} the site was sent other weights than the model holds"
                yield Finding(PROBLEM, f"{text} ({fact}, line {line.n} of its log)")
    fitted = [n for n in last if n.facts.get("calibration")]
    if any(n.facts["calibration"] != value_digest(calibration.get(stage)) for n in fitted):
        yield Finding(PROBLEM, f"stage {stage}: the site's images were judged under another calibration")
    if not last and not chosen:
        yield Finding(NOTE, f"stage {stage}: this site was never asked about the result; its log proves nothing of it")


def _sets(lines: Sequence[Line], stage: str, sureness: Mapping[str, Any]) -> Iterator[Finding]:
    """The prediction sets under which the site's test images were judged, if it was told them."""
    told = {
        n.facts["sureness"]
        for n in lines
        if n.kind == "task" and n.facts.get("stage") == stage and "sureness" in n.facts
    }
    if told - {value_digest(sureness.get(stage))}:
        yield Finding(PROBLEM, f"stage {stage}: the site's images were judged under other prediction sets")


def _payloads(statement: Mapping[str, Any], lines: Sequence[Line], site: str) -> Iterator[Finding]:
    """Payloads of the site that the statement names; those that it does not name are for the logs to explain."""
    sent = {line.facts.get("digest") for line in lines if line.kind == "payload"}
    for row in statement.get("rounds", []):
        for task, payloads in sorted(dict(row.get("payloads", {})).items()):
            if site in payloads and payloads[site] not in sent:
                text = f"stage {row.get('stage')}, round {row.get('round')}, {task}: the statement names a payload"
                yield Finding(PROBLEM, f"{text} that the site did not send")


def _heads(
    statement: Mapping[str, Any], site_lines: Sequence[Line], seen: Sequence[Seen], site: str
) -> Iterator[Finding]:
    own = {line.n: line.digest for line in site_lines}
    named = dict(statement.get("heads", {})).get(site)
    if named is None:
        yield Finding(NOTE, "the statement names no head of this site's log")
    elif own.get(named["length"]) != named["digest"]:
        yield Finding(PROBLEM, f"the statement names another line {named['length']} of this site's log")
    value = statement.get("coordinator_head")
    last = Head(value["length"], value["digest"]) if value else None
    for one in seen if last is not None else ():
        after = last is not None and one.head.length > last.length and one.line.facts.get("task") in AFTER_ALL
        if last is not None and one.head.length >= last.length and one.head != last and not after:
            text = f"the site saw line {one.head.length} of the coordinator's log, which the statement knows otherwise"
            yield Finding(PROBLEM, f"{text}; {one.evidence()}")
