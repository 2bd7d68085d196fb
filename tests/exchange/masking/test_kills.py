"""Real processes that are killed by their numbers: sites at every durable write, the coordinator around the set."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.audit import AuditLog, read_lines, verify
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.kept import KeptSum
from fed_diffmic.exchange.masking.session import SECOND_SET, Session
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import FileStore
from tests.exchange.masking.parties import SESSION, Parties, enrolled, refused, words_of

FORK = multiprocessing.get_context("fork")
WHERE = (*SESSION.place, SESSION.round)
LIMIT_S = 60.0


class Deadly(FileStore):
    """Ends its own process with SIGKILL before or behind a durable write."""

    at, behind, count = 0, False, 0

    def _write(self, do: Callable[[], None]) -> None:
        self.count += 1
        if self.count == self.at and not self.behind:
            os.kill(os.getpid(), signal.SIGKILL)
        do()
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def save(self, place: Any, state: dict[str, Any]) -> None:
        self._write(lambda: super(Deadly, self).save(place, state))

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        self._write(lambda: super(Deadly, self).log(kind, facts))


def in_a_process(task: Callable[[], Any]) -> tuple[Any, int]:
    """What a task gives in a process of its own, and how that ended; nothing where it was killed."""
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sending.send(task()), daemon=True)
    process.start()
    sending.close()
    try:
        answer = receiving.recv() if receiving.poll(LIMIT_S) else None
    except EOFError:
        answer = None
    process.join(LIMIT_S)
    return answer, process.exitcode or 0


def site_step(folder: Path, name: str, roster: Any, step: str, given: tuple[Any, ...], kill: tuple[int, bool]) -> Any:
    """One step of a site that has nothing but its folder."""
    log = AuditLog(folder / f"{name}.jsonl", enrolled(name), owner=name)
    store = Deadly(folder / name, lambda kind, facts: log.append(kind, **facts))
    store.at, store.behind = kill
    return getattr(MaskingSite(name, enrolled(name), roster, store), step)(*given)


STEPS = [("advertise", 1), ("share", 1), ("mask", 1), ("commit", 2), ("unmask", 1)]


@pytest.mark.parametrize("behind", [False, True])
def test_a_site_that_is_killed_at_each_step_ends_with_the_right_sum(tmp_path: Path, behind: bool) -> None:
    parties, victim = Parties(3), "site-01"
    coordinator, deaths = parties.coordinator(), 0

    def ask(name: str, step: str, *given: Any) -> Any:
        nonlocal deaths
        if name != victim:
            return getattr(parties.sites[name], step)(*given)

        def once(at: int) -> tuple[Any, int]:
            task = (tmp_path, name, parties.roster, step, given, (at, behind))
            return in_a_process(lambda: site_step(*task))

        for number in range(1, dict(STEPS)[step] + 1):
            # Behind a write, it is done: what comes next is the first one of the process that follows.
            assert once(1 if behind else number) == (None, -signal.SIGKILL)
            deaths += 1
        answer, code = once(0)
        assert code == 0 and answer is not None
        return answer

    for name in parties.names:
        coordinator.advertised(name, ask(name, "advertise", SESSION, parties.names))
    group = coordinator.group()
    for name in parties.names:
        coordinator.shared(name, ask(name, "share", SESSION, group))
    for name, sealed in coordinator.deliveries().items():
        coordinator.add(name, ask(name, "mask", SESSION, sealed, words_of(name)))
    text = coordinator.freeze()
    for name in parties.names:
        coordinator.signed(name, ask(name, "commit", SESSION, text))
    signatures = coordinator.signatures()
    for name in parties.names:
        coordinator.shares(name, ask(name, "unmask", SESSION, signatures))
    assert coordinator.unmask().tobytes() == parties.total(parties.names).tobytes()
    assert deaths == sum(writes for _, writes in STEPS)
    log = tmp_path / f"{victim}.jsonl"
    assert not verify(log, enrolled(victim).public_key())
    assert {line.facts["set"] for line in read_lines(log) if line.kind != "opened"} == {text}


def mask_all(parties: Parties, session: Session, lost: str = "") -> MaskedSum:
    """A sum with the words of all but one in it, whose set is not frozen."""
    coordinator = parties.coordinator(session)
    for name, site in parties.sites.items():
        coordinator.advertised(name, site.advertise(session, parties.names))
    group = coordinator.group()
    for name, site in parties.sites.items():
        coordinator.shared(name, site.share(session, group))
    for name, sealed in coordinator.deliveries().items():
        if name != lost:
            coordinator.add(name, parties.sites[name].mask(session, sealed, small(name, session)))
    return coordinator


def small(name: str, session: Session) -> np.ndarray:
    """Words that fit in any width."""
    return words_of(name, session, -(2**20), 2**20)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_coordinator_that_is_killed_behind_the_set_comes_back_with_it(tmp_path: Path, bits: int) -> None:
    parties, kept = Parties(4), KeptSum(tmp_path / "k")
    session = replace(SESSION, bits=bits, attempt=kept.begin(WHERE))
    masked = mask_all(parties, session, lost="site-02")

    def die_behind_the_set() -> None:
        KeptSum(tmp_path / "k").freeze(masked, {"states": {"site-00": "ab"}})
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_process(die_behind_the_set) == (None, -signal.SIGKILL)
    text = masked.freeze()
    parties.sites["site-00"].commit(session, text)  # it had been asked already, and what it said is lost
    with pytest.raises(ModelFileError, match="no other attempt"):
        kept.begin(WHERE)
    resumed = kept.resume(WHERE, parties.roster)
    assert resumed is not None
    second, told = resumed
    assert second.freeze() == text and told == {"states": {"site-00": "ab"}}
    summed = ["site-00", "site-01", "site-03"]
    for name in summed:
        second.signed(name, parties.sites[name].commit(session, text))
    for name in summed:
        second.shares(name, parties.sites[name].unmask(session, second.signatures()))
    plain = np.sum([small(name, session) for name in summed], axis=0, dtype=f"<u{bits // 8}")
    assert second.unmask().tobytes() == plain.tobytes()
    again = replace(session, attempt=2)
    refused(SECOND_SET, lambda: parties.sites["site-00"].advertise(again, parties.names))
    kept.forget()
    assert kept.resume(WHERE, parties.roster) is None
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["masked.json"]


def test_attempts_are_numbered_over_restarts_and_begin_anew_with_the_round(tmp_path: Path) -> None:
    assert [KeptSum(tmp_path).begin(WHERE) for _ in range(3)] == [1, 2, 3]
    assert KeptSum(tmp_path).resume(WHERE, {}) is None
    following = (*SESSION.place, 2)
    assert KeptSum(tmp_path).begin(following) == 1
    assert KeptSum(tmp_path).begin(following) == 2
    assert (tmp_path / "masked.json").stat().st_mode & 0o777 == 0o600


def test_a_sum_that_was_given_up_before_its_set_is_followed_by_another_attempt(tmp_path: Path) -> None:
    parties, kept = Parties(3), KeptSum(tmp_path)
    mask_all(parties, replace(SESSION, attempt=kept.begin(WHERE)))
    masked = mask_all(parties, replace(SESSION, attempt=kept.begin(WHERE)))
    text = kept.freeze(masked)
    for name, site in parties.sites.items():
        masked.signed(name, site.commit(masked.session, text))
    for name, site in parties.sites.items():
        masked.shares(name, site.unmask(masked.session, masked.signatures()))
    plain = np.sum([small(name, SESSION) for name in parties.names], axis=0, dtype="<u8")
    assert masked.session.attempt == 2 and masked.unmask().tobytes() == plain.tobytes()


def test_what_does_not_belong_together_is_not_resumed(tmp_path: Path) -> None:
    parties, kept = Parties(3), KeptSum(tmp_path)
    kept.freeze(mask_all(parties, SESSION))
    assert kept.resume((*SESSION.place, 2), parties.roster) is None
    words = (tmp_path / "masked.safetensors").read_bytes()
    (tmp_path / "masked.safetensors").write_bytes(words[:-1] + bytes([words[-1] ^ 1]))
    with pytest.raises(ModelFileError, match="not those of the set"):
        kept.resume(WHERE, parties.roster)
    (tmp_path / "masked.safetensors").write_bytes(words)
    assert kept.resume(WHERE, parties.roster) is not None
    with pytest.raises(ModelFileError, match="cannot be resumed"):
        kept.resume(WHERE, {**parties.roster, "site-00": enrolled("nobody").public_key()})
    (tmp_path / "masked.json").write_text("{}")
    with pytest.raises(ModelFileError, match="not what a masked sum is kept in"):
        kept.resume(WHERE, parties.roster)
