"""Masked sums in two audit logs: a site agreed to one set for a round, and the coordinator's log names the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from fed_diffmic.exchange.audit_findings import PROBLEM, Finding
from fed_diffmic.exchange.audit_lines import Line

AGREED, GIVEN = "masked_set", "masked_shares"
_PLACE = ("arm", "stage", "round")


def sets(site_lines: Sequence[Line], coordinator_lines: Sequence[Line], *, run: str) -> Iterator[Finding]:
    """Everything in which the two logs differ about the sets of a run's masked sums.

    Whoever set a site's folder back to an older copy could have it agree to a second set; the log would show both.

    Args:
        site_lines: the site's log.
        coordinator_lines: the coordinator's log.
        run: the run's name.
    """
    named: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
    for line in coordinator_lines:
        if line.kind == AGREED and line.facts.get("run") == run:
            named[_place(line)].add(str(line.facts.get("set")))
    agreed: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
    for line in site_lines:
        if line.kind in (AGREED, GIVEN) and line.facts.get("run") == run:
            agreed[_place(line)].add(str(line.facts.get("set")))
    for place, texts in sorted(agreed.items(), key=str):
        where = f"stage {place[1]}, round {place[2]}" + ("" if place[3] == "train" else f", {place[3]}")
        if len(texts) > 1:
            yield Finding(PROBLEM, f"{where}: the site agreed to two sets of one round: it was set back in between")
        if texts - named[place]:
            yield Finding(PROBLEM, f"{where}: the site agreed to a set that the coordinator's log does not name")


def _place(line: Line) -> tuple[object, ...]:
    """Where one set is agreed to; a line that does not say what was summed is of updates."""
    return (*(line.facts.get(name) for name in _PLACE), line.facts.get("purpose", "train"))
