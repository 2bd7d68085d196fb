"""Audit logs, their timestamps, privacy ledgers and budgets: done as the message says, they go on."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch import nn

from client import privacy as client_privacy
from client.site import Site
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.exchange.audit_lines import raw_lines, read_lines
from fed_diffmic.exchange.timestamp import verify_token
from fed_diffmic.privacy.account import FILE, FOLDER, UNITS, read_account
from fed_diffmic.privacy.continuity import ECHO, accept, kept_echo
from fed_diffmic.privacy.dp_sgd import make_plan
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.units import load_units
from fed_diffmic.provision.keys import load_private, make_site_key
from tests.exchange.test_timestamp import OPENSSL, authority, stamped
from tests.privacy.ledgers import PLACE, PRIVACY, STEP, A
from tests.privacy.models import private_spec, random_examples, stage_module
from tests.remedies.places import remedy_in, tries

LOG, LINES = "fed_diffmic/exchange/audit.py::AuditLog.", "fed_diffmic/exchange/audit_lines.py::"
STAMP, COMMANDS = "fed_diffmic/exchange/timestamp.py::verify_token | ", "fed_diffmic/commands/"
CONTINUITY, PLAN = "fed_diffmic/privacy/continuity.py::", "fed_diffmic/privacy/dp_sgd.py::"
NONE = np.array([], dtype=np.int64)
__all__ = ["authority"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def log() -> Path:
    """A log of two lines, kept by ``site.key``, and two other keys."""
    for name in ("site", "new", "other"):
        make_site_key(Path(f"{name}.key"))
    made = AuditLog(Path("log"), load_private("site.key"), owner="a")
    made.append("task", run="pilot")
    return made.path


@tries(
    f"{LOG}_last",
    f"{LOG}_check_key",
    f"{LOG}_take_over | Check the pa",
    f"{LOG}_take_over | Give the key",
    f"{LINES}raw_lines",
    f"{COMMANDS}audit_keeping.py::rekey | Check the pa",
    f"{COMMANDS}audit_keeping.py::stamp",
)
def test_a_log_goes_on(log, says, works) -> None:
    new, whole = load_private("new.key"), log.read_bytes()
    Path("empty").touch(mode=0o600)
    rekey = ("--key", "new.key", "--old", "site.key")
    assert "Check the path" in says("audit", "rekey", "empty", *rekey)
    assert "Check the path" in says("audit", "stamp", "empty", "--out", "it.tsq")
    works("audit", "stamp", log, "--out", "it.tsq")
    remedy_in(lambda: AuditLog(Path("empty"), new, owner="a", accept=True), "Check the path")
    remedy_in(lambda: list(raw_lines("none")), "Check the path")
    assert len(list(raw_lines(log))) == 2
    assert "Give the key that signed its last line" in says(
        "audit", "rekey", log, "--key", "new.key", "--old", "other.key"
    )
    said = remedy_in(
        lambda: AuditLog(log, new, owner="a"), r"`fed-diffmic (audit rekey \S+ --key NEW_KEY --old OLD_KEY)"
    )
    works(*said[1].replace("NEW_KEY", "new.key").replace("OLD_KEY", "site.key").split())
    AuditLog(log, new, owner="a")
    log.write_bytes(whole)
    said = remedy_in(lambda: AuditLog(log, new, owner="a"), r"\(or `(--accept)`")
    works("audit", "rekey", log, "--key", "new.key", said[1])
    log.write_bytes(whole[:-9] + b"\n")
    [command] = remedy_in(
        lambda: AuditLog(log, load_private("site.key"), owner="a"),
        r"a new log; `fed-diffmic (audit verify)` says",
    ).groups()
    log.rename("aside")
    AuditLog(log, load_private("site.key"), owner="a")
    works(*command.split(), log, "--key", "site.key.pub")


@pytest.mark.skipif(OPENSSL is None, reason="an authority is made with the program openssl")
@tries(f"{STAMP}Give the aut", f"{STAMP}Give its fil", f"{STAMP}Give the log", f"{STAMP}Check --toke")
def test_timestamps_of_a_log(log, authority) -> None:
    token, root = stamped(log, authority), authority / "root.pem"
    AuditLog(Path("another"), load_private("site.key"), owner="a")
    for given in (
        ("Give the authority's root", log, token, log),
        ("Give its file as it came", log, log, root),
        ("Give the log that it was made of", Path("another"), token, root),
        ("Check --token-ca", log, token, authority / "tsa.pem"),
    ):
        words, of, response, ca = given
        remedy_in(lambda of=of, r=response, ca=ca: verify_token(r, ca, read_lines(of)), words)
        assert verify_token(token, root, read_lines(log)).head.length == 2


@tries(
    f"{COMMANDS}ledger.py::_grant",
    f"{COMMANDS}ledger.py::_accept",
    "fed_diffmic/privacy/account.py::read_account",
    f"{CONTINUITY}kept_echo",
    f"{CONTINUITY}accept",
    "fed_diffmic/privacy/ledger_lines.py::terms_of | The site",
    "fed_diffmic/privacy/units.py::load_units | {_AGAIN.format(name)}",
)
def test_a_ledger_of_a_site(says, works) -> None:
    folder, key = Path("state").absolute(), Path("key").absolute()
    folder.mkdir(mode=0o700)
    make_site_key(key)
    privacy = {"name": "dp_sgd", "unit": "patient", "epsilon": 2.0}
    site = {"name": "north", "folder": str(folder), "device": "cpu"}
    Path("site.yaml").write_text(yaml.safe_dump({"site": site, "coordinator": {"key": str(key)}, "privacy": privacy}))
    own = ("--config", "site.yaml", "--reason")
    assert "with its first private round" in says("ledger", "show", "--config", "site.yaml")
    with Ledger(folder, PRIVACY, load_private(key)) as books:
        books.reserve(A, STEP, **PLACE)
    works("ledger", "show", "--config", "site.yaml")
    said = says("ledger", "grant", *own, "agreed", "--epsilon", 0)
    options = re.search(r"Give (--epsilon) or (--alone), .* --reason with words", said).groups()
    assert "--reason with words" in says("ledger", "grant", *own, " ", "--epsilon", 9)
    for option in options:
        works("ledger", "grant", *own, "agreed", option, 9)
    remedy_in(lambda: accept(folder, load_private(key), reason="x", spent=1.0), "Nothing needs to be accepted")
    works("ledger", "verify", "--config", "site.yaml")
    (folder / ECHO).write_bytes(b"\xff")
    [option] = remedy_in(lambda: kept_echo(folder), r"Give the head with (--\w+), or remove the file").groups()
    (folder / ECHO).unlink()
    kept = (folder / FOLDER / FILE).read_bytes()
    (folder / FOLDER / FILE).write_bytes(kept.splitlines(keepends=True)[0])
    said = says("ledger", "accept", *own, "disk", "--spent", "nan")
    assert "Give --spent, a finite number that is not below zero" in said
    works("ledger", "accept", *own, "disk", "--spent", 3, option, "")
    [unit] = (folder / FOLDER / UNITS).iterdir()
    copy = Path("copy.safetensors")
    shutil.copy(unit, copy)
    other = Path("other.safetensors")
    shutil.copy(unit, other)
    for damage in (unit.unlink, lambda: unit.write_bytes(b"torn")):
        damage()
        [name] = remedy_in(lambda: load_units(unit.parent, unit.stem), r"Put (\S+) back from the backup").groups()
        shutil.copy(copy, unit.parent / name)
        load_units(unit.parent, unit.stem)
    said = says("ledger", "show", "--config", "site.yaml")
    [command] = re.search(r"next private round writes them; `fed-diffmic (ledger verify)`", said).groups()
    works(*command.split(), "--config", "site.yaml")
    with Ledger(folder, PRIVACY, load_private(key)) as books:
        books.reserve(A, STEP, **PLACE)
    assert read_account(folder)


@tries(f"{PLAN}make_plan | a site with", f"{PLAN}_planned_noise | a number, or", f"{PLAN}_planned_noise | more than th")
def test_how_much_noise_a_round_needs() -> None:
    spec, some = private_spec("tiny"), random_examples(32, 10)
    private = PrivacyConfig(name="dp_sgd", unit="image", epsilon=3.0, delta=1e-3, logical_batch=10)

    def plan(examples: object = some, **changes: object) -> object:
        return make_plan(replace(private, **changes), spec, "plain", examples)

    fixed = {"noise_multiplier": 2.0}
    [key] = remedy_in(lambda: plan(some.subset(NONE)), r"privacy\.(\w+)=0 .*or a public number of units").groups()
    assert plan(some.subset(NONE), **{key: 1000, "delta": 1e-4}, **fixed)
    [key] = remedy_in(lambda: plan(epsilon=None), r"a number, or privacy\.(\w+) to compute").groups()
    assert plan(epsilon=None, **fixed)
    [counts] = remedy_in(
        lambda: plan(count_noise=0.3, epsilon=1.0), r"more than the class counts alone cost \(privacy\.(\w+)\)"
    ).groups()
    assert plan(**{counts: 9.0, key: 9.0})


@tries(
    "fed_diffmic/privacy/modules.py::check_private | networks wit",
    "fed_diffmic/privacy/modules.py::check_private | a stage that",
)
def test_what_clipping_cannot_protect() -> None:
    module = stage_module(private_spec("tiny"), "guidance")
    kinds = {"w": "parameter"}
    check_private(module, kinds)
    remedy_in(lambda: check_private(module, {}), "a stage that trains something")
    module.network.add_module("drop", nn.Dropout(0.5))
    remedy_in(lambda: check_private(module, kinds), "networks without drop-out or drop-path; drop is one")
    del module.network.drop
    check_private(module, kinds)


@tries("client/privacy.py::public_weight")
def test_what_a_private_site_weighs() -> None:
    private = PrivacyConfig(
        name="dp_sgd", stages=["plain"], budget=9.0, noise_multiplier=2.0, weight=0, count_noise=0.0
    )
    site, spec = Site("a", None, None, "cpu", privacy=private), private_spec("tiny")
    keys = remedy_in(
        lambda: client_privacy.public_weight(site, spec),
        r"privacy\.(\w+) to a public, .*, or privacy\.(\w+) its",
    ).groups()
    for key in keys:
        assert client_privacy.public_weight(replace(site, privacy=replace(private, **{key: 30})), spec) == 30
