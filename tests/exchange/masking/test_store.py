"""What outlives a kill: ended before or behind any durable write, a site goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.errors import MachineError
from fed_diffmic.exchange.audit import AuditLog, read_lines, verify
from fed_diffmic.exchange.masking.driver import masked_sum
from fed_diffmic.exchange.masking.session import SECOND_SET
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import FileStore, MemoryStore
from tests.exchange.masking.parties import SESSION, Parties, enrolled, refused, words_of


class KilledError(Exception):
    """The process is gone."""


class Mortal(MemoryStore):
    """A store whose process is ended once, before or behind the so-and-so-manieth durable write."""

    def __init__(self, at: int = -1, behind: bool = False) -> None:
        super().__init__()
        self.at, self.behind, self.count = at, behind, 0

    def _write(self, do: Callable[[], None]) -> None:
        self.count += 1
        if self.count == self.at and not self.behind:
            raise KilledError
        do()
        if self.count == self.at:
            raise KilledError

    def save(self, place: Any, state: dict[str, Any]) -> None:
        self._write(lambda: super(Mortal, self).save(place, state))

    def log(self, kind: str, facts: dict[str, Any]) -> None:
        self._write(lambda: super(Mortal, self).log(kind, facts))


class Restarting:
    """Stands for a site whose supervisor starts it again, and whom the coordinator asks again."""

    def __init__(self, parties: Parties, name: str) -> None:
        self.parties, self.name, self.deaths = parties, name, 0

    def __getattr__(self, step: str) -> Callable[..., Any]:
        def once(*given: Any) -> Any:
            site = self.parties.restarted(self.name)
            try:
                return getattr(site, step)(*given)
            except KilledError:
                self.deaths += 1
                return getattr(self.parties.restarted(self.name), step)(*given)

        def ask(*given: Any) -> Any:
            answer, again = once(*given), once(*given)  # as if the first answer had been lost
            assert step == "commit" or str(again) == str(answer)  # an ECDSA signature is another each time
            return answer

        return ask


def run(store: Mortal) -> Restarting:
    parties = Parties(3)
    parties.stores["site-01"] = store
    site = Restarting(parties, "site-01")
    parties.restarted("site-01")
    words = {name: words_of(name) for name in parties.names}
    others = {name: parties.sites[name] for name in ("site-00", "site-02")}
    total, chosen = masked_sum(parties.coordinator(), {**others, "site-01": site}, words)  # type: ignore[dict-item]
    assert chosen.summed == tuple(parties.names) and total.tobytes() == parties.total(parties.names).tobytes()
    assert {facts["set"] for _, facts in store.lines} == {chosen.text}
    assert {kind for kind, _ in store.lines} == {"masked_set", "masked_shares"}
    return site


@pytest.mark.parametrize("behind", [False, True])
def test_a_site_that_is_killed_at_any_write_goes_on(behind: bool) -> None:
    untouched = Mortal()
    run(untouched)
    writes = untouched.count
    assert writes == 4 + 2 + 2  # a state for each of four steps; a line for each answer to the set, and with shares
    for at in range(1, writes + 1):
        assert run(Mortal(at, behind)).deaths == 1


def test_a_second_set_is_refused_though_the_process_ended_before_its_line() -> None:
    """The file says what was signed or about to be; the line follows before anything leaves."""
    parties = Parties(5)
    store = parties.stores["site-00"] = Mortal(at=5)
    parties.restarted("site-00")
    parties.mask()
    everyone = parties.set_of(parties.names)
    assert store.count == 3
    with pytest.raises(KilledError):
        parties.sites["site-00"].commit(SESSION, everyone)
    assert store.lines == []
    refused(SECOND_SET, lambda: parties.restarted("site-00").commit(SESSION, parties.set_of(parties.names[:4])))
    parties.sites["site-00"].commit(SESSION, everyone)
    assert [facts["set"] for _, facts in store.lines] == [everyone]


def test_files_are_private_and_the_log_is_the_sites_own(tmp_path: Path) -> None:
    parties, logs = Parties(3), {}
    for name in parties.names:
        log = AuditLog(tmp_path / f"{name}.jsonl", enrolled(name), owner=name)
        logs[name] = log.path
        store = FileStore(tmp_path / name, lambda kind, facts, log=log: log.append(kind, **facts))
        parties.sites[name] = MaskingSite(name, enrolled(name), parties.roster, store)
    total, chosen = parties.sum()
    assert total.tobytes() == parties.total(parties.names).tobytes()
    for name in parties.names:
        (file,) = (tmp_path / name).iterdir()
        assert file.stat().st_mode & 0o777 == 0o600 and (tmp_path / name).stat().st_mode & 0o777 == 0o700
        lines = read_lines(logs[name])
        assert [line.kind for line in lines] == ["opened", "masked_set", "masked_shares"]
        assert all(line.facts["set"] == chosen.text for line in lines[1:])
        assert not verify(logs[name], enrolled(name).public_key())
    file.write_text("{")
    with pytest.raises(MachineError, match="masked sums cannot be read"):
        parties.sites[name].advertise(SESSION, parties.names)


def test_stages_and_purposes_are_kept_apart(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "m", lambda kind, facts: None)
    places = [("r", "a", "s", "p"), ("r", "a", "s", "q"), ("r", "a", "sp", ""), ("../r", "a", "s", "p")]
    for index, place in enumerate(places):
        assert store.load(place) is None
        store.save(place, {"n": index})
    assert [store.load(place) for place in places] == [{"n": index} for index in range(4)]
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / "m"}
