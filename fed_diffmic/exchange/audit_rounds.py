"""What a coordinator made of the sites' payloads, as its log says, against what it sent to a site afterwards.

For each round the coordinator's log has a line ``aggregate``: the payloads that went in, by site, and the digests of
what came out: ``weights`` (the round's global weights), ``candidate`` (what is evaluated: their moving average, where
there is one) and ``sent`` (what the next round's requests hold: the weights with what the algorithm sends beside them).
``begun`` names what a stage's first round sends and the ``base``, ``chosen`` the round whose candidate is the stage's
result, ``checkpoint`` (or ``resumed``, after a crash in between) a round that is complete. So each request that a site
wrote down must have one of those digests. Whether the sums are right cannot be seen from digests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from fed_diffmic.exchange.audit_findings import NOTE, PROBLEM, Finding
from fed_diffmic.exchange.audit_lines import Line

Place = tuple[str, str, Any]
RESTARTS = {"opened", "resumed"}
MADE = {"begun", "aggregate", "chosen"}


def rounds(
    site_lines: Sequence[Line], coordinator_lines: Sequence[Line], *, site: str, run: str, names: set[str]
) -> Iterator[Finding]:
    """Everything in which the coordinator's rounds do not fit what it took and what it sent.

    Args:
        site_lines: the site's log.
        coordinator_lines: the coordinator's log, in order.
        site: its name.
        run: the run's name.
        names: what the coordinator's log calls the site.
    """
    log = _Log(coordinator_lines, run)
    for place in sorted(log.replies, key=str):
        yield from _taken(log, place, site, names)
    yield from _ghosts(log)
    yield from _incomplete(log)
    yield from _chosen(log)
    yield from _sent(log, [line for line in site_lines if line.kind == "task" and line.facts.get("run") == run])


class _Log:
    """The coordinator's lines of one run, by what they are about."""

    def __init__(self, lines: Sequence[Line], run: str) -> None:
        aggregates: defaultdict[Place, list[Line]] = defaultdict(list)
        replies: defaultdict[Place, list[Line]] = defaultdict(list)
        complete: defaultdict[Place, list[int]] = defaultdict(list)
        self.mine = [line for line in lines if line.facts.get("run") == run]
        self.restarts = [line.n for line in lines if line.kind in RESTARTS]
        self.requests = [line for line in self.mine if line.kind == "request" and line.facts.get("stage")]
        for line in self.mine:
            if line.kind == "aggregate":
                aggregates[_place(line)].append(line)
            elif line.kind == "reply" and line.facts.get("reply") == "train.reply" and not line.facts.get("refused"):
                replies[_place(line)].append(line)
            elif line.kind in ("checkpoint", "resumed"):
                complete[_place(line)].append(line.n)
        self.replies, self.complete, self._aggregates = dict(replies), dict(complete), dict(aggregates)

    def aggregates(self, place: Place) -> list[Line]:
        """Lines of a round; several where a crash came before its checkpoint."""
        return self._aggregates.get(place, [])

    def all_aggregates(self) -> list[tuple[Place, list[Line]]]:
        """Those of all rounds."""
        return sorted(self._aggregates.items(), key=str)

    def of(self, kind: str, arm: str, stage: str) -> list[Line]:
        """Lines of a kind for a stage."""
        found = [line for line in self.mine if line.kind == kind]
        return [line for line in found if (line.facts.get("arm"), line.facts.get("stage")) == (arm, stage)]

    def went_on(self, place: Place, after: int) -> bool:
        """Whether sites were asked for anything of another round or stage behind a line."""
        return any(line.n > after and _place(line) != place for line in self.requests)

    def excused(self, site: str, names: set[str], place: Place, after: int, before: int) -> bool:
        """Whether between two lines it was said why the site's payload does not count."""
        return any(
            line.kind in ("refusal", "failure") and after < line.n < before and line.facts.get("site") in names
            and (line.facts.get("arm", place[0]), line.facts.get("stage"), line.facts.get("round")) == place
            for line in self.mine
        )  # fmt: skip


def _taken(log: _Log, place: Place, site: str, names: set[str]) -> Iterator[Finding]:
    """Payloads of the site that the coordinator took, and their round's aggregate."""
    took = [line for line in log.replies[place] if line.facts.get("site") in names]
    named = f"stage {place[1]}, round {place[2]}"
    if took and not log.aggregates(place) and log.went_on(place, took[-1].n):
        yield Finding(PROBLEM, f"{named}: the site's payload was taken, and no line says what it went into")
    before = 0
    for aggregate in log.aggregates(place):
        last = next((line for line in reversed(took) if before < line.n < aggregate.n), None)
        inside = _payloads(aggregate).get(site)
        before = aggregate.n
        if last is None or inside == last.facts.get("digest"):
            continue
        if inside is not None:
            text = f"{named}: the aggregate names another payload of the site than the one that was taken last"
            yield Finding(PROBLEM, text)
        elif any(last.n < n < aggregate.n for n in log.restarts):
            yield Finding(NOTE, f"{named}: the site's payload came before a restart and did not go into the round")
        elif not log.excused(site, names, place, last.n, aggregate.n):
            yield Finding(PROBLEM, f"{named}: the site's payload was taken without a refusal, and left out")


def _ghosts(log: _Log) -> Iterator[Finding]:
    """Payloads inside an aggregate that no line says came."""
    for place, lines in log.all_aggregates():
        for line in lines:
            came = {r.facts.get("digest") for r in log.replies.get(place, []) if r.n < line.n}
            for name in sorted(name for name, digest in _payloads(line).items() if digest not in came):
                text = f"stage {place[1]}, round {place[2]}: the aggregate has a payload of {name} that did not come"
                yield Finding(PROBLEM, text)


def _incomplete(log: _Log) -> Iterator[Finding]:
    for place, lines in log.all_aggregates():
        last = lines[-1].n
        if log.went_on(place, last) and not any(n > last for n in log.complete.get(place, [])):
            text = f"stage {place[1]}, round {place[2]}: later rounds follow, and no line says that it was complete"
            yield Finding(PROBLEM, text)


def _chosen(log: _Log) -> Iterator[Finding]:
    for line in log.mine:
        if line.kind != "chosen":
            continue
        arm, stage, index = _place(line)
        made = [a for a in log.aggregates((arm, stage, index)) if a.n < line.n]
        if line.facts.get("candidate") not in {a.facts.get("candidate") for a in made}:
            yield Finding(PROBLEM, f"stage {stage}: what was chosen is not what round {index} made")


def _sent(log: _Log, tasks: Sequence[Line]) -> Iterator[Finding]:
    """Weights and base that the site was sent, where its log names them (older ones do not)."""
    said: set[str] = set()
    for task in tasks:
        weights, stage = task.facts.get("weights"), task.facts.get("stage")
        if not weights or not stage or type(task.facts.get("round")) is not int:
            continue
        for text in _differs(log, task, str(weights)):
            if text not in said:
                said.add(text)
                yield Finding(PROBLEM, text)


def _differs(log: _Log, task: Line, weights: str) -> Iterator[str]:
    arm, stage, index = _place(task)
    kind, named = task.facts.get("task"), f"stage {stage}, round {index}, {task.facts.get('task')}"
    begun = log.of("begun", arm, stage)
    base = task.facts.get("base")
    if base and base not in {line.facts.get("base") for line in begun}:
        yield f"{named}: the site was sent a base that the coordinator's log does not name"
    if (
        kind == "mask"
    ):  # a step of a masked sum names what the sum's updates are trained from, or what it says figures of
        kind = "evaluate" if "purpose" in task.facts else "train"
    if kind == "train" and index == 1:
        source, right = "the stage began with", {line.facts.get("sent") for line in begun}
    elif kind == "train":
        source = f"round {index - 1} made"
        right = {line.facts.get("sent") for line in log.aggregates((arm, stage, index - 1))}
    elif index == 0:
        source, right = "was chosen", {line.facts.get("candidate") for line in log.of("chosen", arm, stage)}
    else:
        source, right = "this round made", {line.facts.get("candidate") for line in log.aggregates((arm, stage, index))}
    if weights not in right:
        yield f"{named}: the site was sent other weights than what {source}, as the coordinator's log has it"


def _payloads(line: Line) -> dict[str, Any]:
    value = line.facts.get("payloads")
    return dict(value) if isinstance(value, dict) else {}


def _place(line: Line) -> Place:
    return str(line.facts.get("arm", "")), str(line.facts.get("stage", "")), line.facts.get("round")
