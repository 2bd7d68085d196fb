"""A coordinator that asks whatever it likes, with a site on its side: it opens one sum of a round, and no site's words.

Each walk asks the four honest sites of five for steps at random: other groups, other subsets of shares, other sets,
other attempts, out of turn, with every signature that it has and those that its own site makes for anything. What it
was given is counted: which sets it could unmask, and whether it has enough shares of both secrets of an honest site.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import combinations
from random import Random

from fed_diffmic.exchange.masking import keys
from fed_diffmic.exchange.masking.session import MaskingError, Session, SurvivorSet, sorted_names
from fed_diffmic.exchange.masking.shamir import share_threshold
from fed_diffmic.exchange.seal import Signed
from tests.exchange.masking.parties import SESSION, Parties, enrolled, words_of

WALKS, ATTEMPTS = 24, 2
BAD = "site-04"


class Coordinator:
    """What it knows, and what it tries next."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.parties = Parties(5)
        self.honest = [name for name in self.parties.names if name != BAD]
        self.sessions = [replace(SESSION, attempt=number) for number in range(1, ATTEMPTS + 1)]
        # Its own site keeps no rule: it takes part in every attempt at once, each time as if there were no other.
        self.own = {session: Parties(5).sites[BAD] for session in self.sessions}
        self.keys: dict[Session, dict[str, Signed]] = defaultdict(dict)
        self.sealed: dict[Session, dict[str, dict[str, str]]] = defaultdict(dict)
        self.groups: dict[tuple[Session, str], dict[str, Signed]] = {}
        self.signed: dict[str, dict[str, str]] = defaultdict(dict)
        self.texts: dict[tuple[Session, str], str] = {}
        self.opened: dict[str, set[str]] = defaultdict(set)
        self.shares: dict[tuple[Session, str, str], set[str]] = defaultdict(set)

    def walk(self) -> None:
        """Twice through the steps in their order, with other questions in between."""
        steps = [self.share, self.mask, self.commit, self.unmask]
        for session in [self.sessions[0], *self.random.choices(self.sessions, k=2)]:
            for step in steps:
                for name in self.random.sample(self.honest, len(self.honest)):
                    if self.random.random() < 0.95:
                        self.ask(step, session, name)
                    if self.random.random() < 0.3:
                        other = self.random.choice(self.sessions)
                        self.ask(self.random.choice(steps), other, self.random.choice(self.honest))

    def ask(self, step: Callable[[Session, str], None], session: Session, name: str) -> None:
        with suppress(MaskingError):
            step(session, name)

    def some(self, names: list[str], rarely: float = 0.1) -> list[str]:
        """All of them mostly, else some."""
        leave_out = self.random.random() < rarely
        return self.random.sample(names, self.random.randint(0, len(names))) if leave_out else names

    def advertise(self, session: Session, name: str) -> None:
        site = self.own[session] if name == BAD else self.parties.sites[name]
        self.keys[session][name] = site.advertise(session, self.parties.names)

    def share(self, session: Session, name: str) -> None:
        for other in self.parties.names:
            if other not in self.keys[session]:
                self.ask(self.advertise, session, other)
        group = {other: self.keys[session][other] for other in sorted(self.some(list(self.keys[session]), 0.03))}
        if BAD not in self.sealed[session]:
            self.sealed[session][BAD] = self.own[session].share(session, self.keys[session])
        self.sealed[session][name] = self.parties.sites[name].share(session, group)
        self.groups[session, name] = group

    def mask(self, session: Session, name: str) -> None:
        sealed = {other: self.sealed[session][other][name] for other in self.some(list(self.sealed[session]), 0.05)
                  if other != name and name in self.sealed[session].get(other, {})}  # fmt: skip
        self.parties.sites[name].mask(session, sealed, words_of(name))

    def commit(self, session: Session, name: str) -> None:
        if self.random.random() < 0.85 and self.texts:  # a set that somebody signed
            text = self.random.choice(sorted(set(self.texts.values())))
        else:
            state = self.parties.stores[name].load(session.place) or {"group": {}, "held": {}}
            summed = sorted_names(self.some(list(state["held"]), 0.5))
            dropped = sorted_names(set(state["held"]) - set(summed))
            group = keys.group_digest(session, state["group"])
            text = SurvivorSet(session.digest, group, summed, dropped).text
        self.signed[text][name] = self.parties.sites[name].commit(session, text)
        self.texts[session, name] = text

    def unmask(self, session: Session, name: str) -> None:
        text = self.texts.get((session, name), "")
        have = dict(self.signed[text])
        if text and BAD in SurvivorSet.parse(text).summed:
            have[BAD] = keys.sign_set(text, enrolled(BAD))  # it signs whatever it is asked to
        given = self.parties.sites[name].unmask(session, have)
        self.opened[text].add(name)
        for kind in ("seed", "mask"):
            for other in given[kind]:
                self.shares[session, other, kind].add(name)


@cache
def walks() -> list[Coordinator]:
    found = [Coordinator(seed) for seed in range(WALKS)]
    for coordinator in found:
        coordinator.walk()
    return found


def enough(coordinator: Coordinator, session: Session, name: str, kind: str) -> bool:
    """Whether it can rebuild an honest site's secret, with the share that its own site has where it was given one."""
    group = coordinator.groups.get((session, name), {})
    own = BAD in group
    return bool(group) and len(coordinator.shares[session, name, kind]) + own >= share_threshold(len(group))


def test_at_most_one_set_of_a_round_is_opened() -> None:
    opened = []
    for coordinator in walks():
        sets = [SurvivorSet.parse(text).summed for text, givers in coordinator.opened.items()
                if len(givers) + (BAD in SurvivorSet.parse(text).summed) >= 3]  # fmt: skip
        assert len(sets) <= 1, sets
        opened += sets
    assert len(opened) > WALKS // 8  # the walks get somewhere


def test_no_honest_sites_secrets_are_both_rebuilt() -> None:
    rebuilt = 0
    for coordinator in walks():
        for session in coordinator.sessions:
            for name in coordinator.honest:
                kinds = [enough(coordinator, session, name, kind) for kind in ("seed", "mask")]
                assert not all(kinds), (session.attempt, name)
                rebuilt += any(kinds)
    assert rebuilt > WALKS // 8


def test_no_two_honest_sites_sign_sets_that_both_can_be_opened() -> None:
    """Enough signatures for two sets would need an honest site under both."""
    for coordinator in walks():
        for one, two in combinations(coordinator.signed, 2):
            both = [name for name in coordinator.honest if {one, two} <= {
                text for text in coordinator.signed if name in coordinator.signed[text]}]  # fmt: skip
            assert both == []
