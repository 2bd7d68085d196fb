"""What each side signed about its own log, kept in the other's: a log that was written anew is convicted by it.

A request's seal holds the head of the coordinator's chain and its signature, a reply's seal that of the site's
(:mod:`fed_diffmic.exchange.seal`). Both stand in the log of the side that received them, so that either log, with any
one site's, shows whether the other is still the one that was spoken for. Older logs hold the site's heads only, without
a signature (``anchor``); they count as heads, and prove nothing to anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from fed_diffmic.exchange.audit_facts import ANCHOR, anchor_of
from fed_diffmic.exchange.audit_findings import PROBLEM, Finding, where
from fed_diffmic.exchange.audit_lines import Head, Line
from fed_diffmic.exchange.seal import ReplySeal, RequestSeal, SealError, read_reply_seal, read_request_seal
from fed_diffmic.provision.keys import PublicKey, fingerprint

_Seal = TypeVar("_Seal", RequestSeal, ReplySeal)
COORDINATOR = "the coordinator"
CLOCK = timedelta(minutes=10)
"""Two clocks further apart than 305 s cannot speak with each other at all (Flower refuses the signatures)."""


@dataclass(frozen=True)
class Seen:
    """A head of one side's chain, as the other side's log holds it.

    Attributes:
        head: of the chain.
        line: the line that holds it.
        signer: who signed it, for people; empty: nobody did.
        key: fingerprint of the key that signed.
    """

    head: Head
    line: Line
    signer: str = ""
    key: str = ""

    def evidence(self) -> str:
        """The signed seal, for whoever must be shown it."""
        if not self.signer:
            return f"line {self.line.n} holds the head without a signature: it proves nothing to a third party"
        seal, signature = self.line.facts["seal"], self.line.facts["seal_signature"]
        return f"the signature of {self.signer} (key {self.key}) proves it: seal {seal} signature {signature}"


def coordinator_heads(
    site_lines: Sequence[Line], keys: Sequence[PublicKey], *, site: str, run: str
) -> tuple[list[Seen], list[Finding]]:
    """Heads of the coordinator's chain that a site was shown with the requests of a run.

    Args:
        site_lines: the site's log.
        keys: of the coordinator.
        site: its name.
        run: each run has a chain of its own.

    Returns:
        the heads whose signature holds, and what is wrong with seals that do not.
    """
    seen: list[Seen] = []
    findings: list[Finding] = []
    unsealed = sealed = 0
    for line in site_lines:
        if line.kind != "task" or line.facts.get("run") != run:
            continue
        if "seal" not in line.facts:
            unsealed += 1
            continue
        sealed += 1
        found = _read(read_request_seal, line, keys)
        if found is None or (found[0].to, found[0].digest) != (site, line.facts.get("digest")):
            text = (
                f"{where(line)}: the seal in line {line.n} of the site's log is not the coordinator's over that request"
            )
            findings.append(Finding(PROBLEM, text))
        else:
            seen.append(Seen(found[0].head, line, COORDINATOR, found[1]))
    if unsealed and sealed:
        findings.append(Finding(PROBLEM, f"{unsealed} requests that the site took carry no seal, and others do"))
    return seen, findings


def site_heads(
    coordinator_lines: Sequence[Line], keys: Sequence[PublicKey], *, site: str, names: set[str]
) -> tuple[list[Seen], list[Finding]]:
    """Heads of a site's chain that the coordinator was shown with its replies, in all runs of that log.

    Args:
        coordinator_lines: the coordinator's log.
        keys: of the site; none: seals are not looked at, and the heads beside them are taken as they stand.
        site: its name.
        names: what that log calls it.
    """
    seen: list[Seen] = []
    findings: list[Finding] = []
    for line in coordinator_lines:
        if line.kind != "reply" or line.facts.get("site") not in names:
            continue
        anchor = anchor_of({ANCHOR: line.facts.get("anchor")})
        if anchor is not None:
            seen.append(Seen(anchor, line))
        if "seal" not in line.facts or not keys:
            continue
        found = _read(read_reply_seal, line, keys)
        named = (line.facts.get("digest"), line.facts.get("request"), site)
        if found is None or (found[0].digest, found[0].request, found[0].site) != named:
            text = (
                f"{where(line)}: the seal in line {line.n} of the coordinator's log is not the site's over that reply"
            )
            findings.append(Finding(PROBLEM, text))
        else:
            seen.append(Seen(found[0].head, line, f"the site {site}", found[1]))
    return seen, findings


def times(
    site_lines: Sequence[Line],
    coordinator_lines: Sequence[Line],
    shown: Sequence[Seen],
    seen: Sequence[Seen],
    *,
    site: str,
) -> Iterator[Finding]:
    """Where the lines' own times cannot be, within :data:`CLOCK`.

    Args:
        site_lines: the site's log.
        coordinator_lines: the coordinator's.
        shown: heads of the coordinator's chain that the site saw.
        seen: heads of the site's chain that the coordinator saw.
        site: name.
    """
    for lines, owner in ((site_lines, f"the log of {site}"), (coordinator_lines, "the coordinator's log")):
        yield from _backwards(lines, owner)
    yield from _seen_before(shown, coordinator_lines, "the coordinator's log")
    yield from _seen_before(seen, site_lines, f"the log of {site}")


def _seen_before(seen: Sequence[Seen], lines: Sequence[Line], owner: str) -> Iterator[Finding]:
    """Lines that, by their own time, were written later than the other side had seen them."""
    by_number = {line.n: line for line in lines}
    for one in seen:
        line = by_number.get(one.head.length)
        if line is None or line.digest != one.head.digest:
            continue
        mine, theirs = _time(line), _time(one.line)
        if mine is not None and theirs is not None and mine > theirs + CLOCK:
            text = f"line {line.n} of {owner} says {line.time}, and the other side had seen it at {one.line.time}"
            yield Finding(PROBLEM, text)


def _backwards(lines: Sequence[Line], owner: str) -> Iterator[Finding]:
    """Lines that, by their own time, were written before the ones in front of them."""
    latest: Line | None = None
    for line in lines:
        now, before = _time(line), None if latest is None else _time(latest)
        if now is None:
            yield Finding(PROBLEM, f"line {line.n} of {owner} has no time that can be read")
        elif before is not None and latest is not None and now < before - CLOCK:
            text = f"the times of {owner} run backwards: line {line.n} says {line.time}, line {latest.n} {latest.time}"
            yield Finding(PROBLEM, text)
        if now is not None and (before is None or now >= before):
            latest = line


def _read(
    read: Callable[[str, str, PublicKey], _Seal], line: Line, keys: Sequence[PublicKey]
) -> tuple[_Seal, str] | None:
    """A line's seal and the fingerprint of the key that signed it; none: it is of none of the keys."""
    for key in keys:
        try:
            return read(str(line.facts["seal"]), str(line.facts.get("seal_signature")), key), fingerprint(key)
        except SealError:
            continue
    return None


def _time(line: Line) -> datetime | None:
    try:
        return datetime.fromisoformat(line.time)
    except ValueError:
        return None
