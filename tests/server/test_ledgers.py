"""What the coordinator keeps of the sites' privacy ledgers: per key, over all runs, and never less than was said."""

import json
import math
from pathlib import Path

import pytest

from fed_diffmic.config.server import ServerConfig, ServerRunConfig, ServerSecurityConfig
from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.exchange.claims import claim_text
from fed_diffmic.privacy.ledger_lines import parse_seen
from fed_diffmic.provision.keys import make_site_key
from fed_diffmic.provision.roster import Roster
from server import ledgers
from server.hooks import Hooks
from server.ledgers import LedgerMemory, memory_path
from server.start import ledger_memory

HEADS = [f"{n}:{str(n) * 64}" for n in range(1, 6)]


def claim(total):
    return claim_text(
        unit="patient", delta=1e-5, epsilon_run=1.0, epsilon_total=total, budget=8.0, guarantee=True, outside=[]
    )


@pytest.fixture
def home(tmp_path):
    roster = Roster()
    for name in ("aurum", "birch"):
        roster = roster.enrol(name, make_site_key(tmp_path / f"{name}.key"), "Hospital")
    roster.save(tmp_path / "roster.json")
    return tmp_path


def memory(home):
    return LedgerMemory(home / "kept.json", home / "roster.json")


def test_the_last_head_and_the_most_spent_are_kept_for_each_key(home):
    kept = memory(home)
    assert kept.echo("aurum") == ""
    kept.saw("aurum", HEADS[1], claim(2.5), "one")
    kept.saw("birch", HEADS[2], claim(0.5), "one")
    assert parse_seen(memory(home).echo("aurum")).spent == 2.5
    memory(home).saw("aurum", HEADS[3], claim(1.0), "two")  # other patients, who spent less
    seen = parse_seen(kept.echo("aurum"))
    assert (seen.head.length, seen.spent) == (4, 2.5)
    kept.saw("aurum", HEADS[4], "", "two")
    assert parse_seen(kept.echo("aurum")).spent == 2.5 and parse_seen(kept.echo("birch")).spent == 0.5
    kept.saw("aurum", HEADS[4], claim(math.inf), "two")
    assert parse_seen(kept.echo("aurum")).spent == math.inf
    assert kept.path.stat().st_mode & 0o777 == 0o600


def test_a_name_with_a_new_key_is_told_what_its_last_key_held(home):
    kept = memory(home)
    kept.saw("aurum", HEADS[1], claim(2.5), "one")
    public = make_site_key(home / "new.key")
    Roster.load(home / "roster.json").rekey("aurum", public, "lost").save(home / "roster.json")
    assert kept.echo("aurum").startswith(HEADS[1])
    kept.saw("aurum", HEADS[3], claim(0.5), "two")
    assert parse_seen(kept.echo("aurum")).spent == 0.5
    assert len(json.loads(kept.path.read_text())["keys"]) == 2


def test_what_is_no_head_and_who_is_no_site_are_passed_over(home):
    kept = memory(home)
    kept.saw("aurum", "nonsense", claim(1.0), "one")
    kept.saw("stranger", HEADS[0], claim(1.0), "one")
    assert not kept.path.exists() and kept.echo("stranger") == ""
    Hooks(ledgers=kept).saw("aurum", {"run": "one"})
    Hooks().saw("aurum", {"run": "one", "ledger": HEADS[0], "claim": ""})
    assert not kept.path.exists() and Hooks().echo("aurum") == ""


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1, "keys": {"k": {"site": "aurum"}}}',
                                  '{"version": 2, "keys": {}}'])  # fmt: skip
def test_a_damaged_file_stops_the_coordinator_before_anything_listens(home, text):
    (home / "kept.json").write_text(text)
    with pytest.raises(ModelFileError):
        memory(home).check()


def test_a_place_that_cannot_be_written_is_said_before_the_first_round(home, monkeypatch):
    memory(home).check()
    monkeypatch.setattr(ledgers.os, "access", lambda *_: False)
    with pytest.raises(MachineError, match=r"kept\.json cannot be written"):
        memory(home).check()


def test_all_runs_of_a_coordinator_share_one_file(home, monkeypatch):
    roster, run = home / "roster.json", home / "runs" / "one"
    assert memory_path("/elsewhere/x", roster, run) == Path("/elsewhere/x")
    assert memory_path(None, roster, run) == home / "roster.json.ledgers.json"
    monkeypatch.setattr(ledgers.os, "access", lambda *_: False)  # mounted read-only
    assert memory_path(None, roster, run) == memory_path(None, roster, home / "runs" / "two")
    assert memory_path(None, roster, run).parent == home / "runs"
    security = ServerSecurityConfig(roster=str(roster), ledgers=str(home / "kept.json"))
    config = ServerConfig(security=security, run=ServerRunConfig(dir=str(run)))
    assert ledger_memory(config) == memory(home)
    insecure = ServerConfig(security=ServerSecurityConfig(insecure=True), run=config.run)
    assert ledger_memory(insecure) is None
