"""Faults seen: the second budget is not looked at, or not kept; an old ledger does not read; a line says one number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import BudgetError, LedgerError
from fed_diffmic.exchange.audit import AuditLog, read_lines, verify
from fed_diffmic.exchange.claims import Alone, claim_text, parse_claim
from fed_diffmic.privacy.account import FILE, FOLDER, read_account
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.continuity import accept
from fed_diffmic.privacy.distributed.accounting import cost_of
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.plot import plot_spending
from fed_diffmic.privacy.statement import statement
from fed_diffmic.provision.keys import PrivateKey, load_private, make_site_key
from tests.privacy.test_units import units

OWN = PrivacyConfig(name="dp_sgd", budget=8.0)
SHARED = replace(OWN, mechanism="distributed", honest_sites=3, budget_alone=20.0)
PLACE = {"run": "r1", "arm": "federated", "stage": "guidance", "round_index": 1}
COST = cost_of(1.0, 0.1, 3, 5)
A = units((1, "a"), (2, "a"))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    path = tmp_path_factory.mktemp("key") / "key"
    make_site_key(path)
    return load_private(path)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    return folder


def reserve(ledger: Ledger, steps: int = 5) -> int:
    own = cost_of(1.0, 0.1, 3, steps)
    return ledger.reserve(A, own.honest, alone=own.alone, **PLACE)


def price(mechanism: Mechanism, steps: int) -> float:
    return epsilon([replace(mechanism, steps=steps)], 1e-5)


def test_a_line_costs_two_numbers_and_settles_both(site: Path, key: PrivateKey) -> None:
    with Ledger(site, SHARED, key) as ledger:
        number = reserve(ledger)
        assert ledger.spent(A) == pytest.approx(price(COST.honest, 5))
        assert ledger.spent(A, alone=True) == pytest.approx(price(COST.alone, 5))
        assert ledger.spent(A, alone=True) > 1.8 * ledger.spent(A)
        ledger.settle(number, 2)
    account = read_account(site)
    assert account.total() == pytest.approx(price(COST.honest, 2))
    assert account.total("r1", alone=True) == pytest.approx(price(COST.alone, 2))
    assert account.terms.budget_alone == 20.0
    facts = next(line.facts for line in read_lines(site / FOLDER / FILE) if line.kind == "reserve")
    assert (facts["noise_multiplier"], facts["noise_alone"]) == (2.0, 1.0)
    assert facts["epsilon_alone"] > facts["epsilon"]


def test_either_budget_stops_a_round_and_nothing_is_written(site: Path, key: PrivateKey) -> None:
    alone = price(COST.alone, 5)
    with Ledger(site, replace(SHARED, budget_alone=alone * 1.01), key) as ledger:
        assert ledger.rounds_left(A, COST.honest, alone=COST.alone) == 1
        reserve(ledger)
        before = (site / FOLDER / FILE).read_bytes()
        with pytest.raises(BudgetError, match="no other site added noise"):
            reserve(ledger)
        assert (site / FOLDER / FILE).read_bytes() == before
        ledger.grant(None, "the board, 3 May", alone=50.0)
        reserve(ledger)
        ledger.grant(ledger.spent(A) * 1.001, "less")
        with pytest.raises(BudgetError, match="budget of this site"):
            reserve(ledger)


def test_only_a_grant_raises_the_second_budget_and_a_configuration_lowers_it(site: Path, key: PrivateKey) -> None:
    with Ledger(site, SHARED, key):
        pass
    with Ledger(site, replace(SHARED, budget_alone=90.0), key) as ledger:
        assert ledger.terms.budget_alone == 20.0
        ledger.grant(None, "more", alone=60.0)
    with Ledger(site, replace(SHARED, budget_alone=90.0), key) as ledger:
        assert ledger.terms.budget_alone == 60.0
    with Ledger(site, replace(SHARED, budget_alone=5.0), key) as ledger:
        assert (ledger.terms.budget, ledger.terms.budget_alone) == (8.0, 5.0)
    for wrong in ({"budget": None}, {"budget": 1.0, "alone": -1.0}):
        with Ledger(site, SHARED, key) as ledger, pytest.raises(ValueError, match="grant needs"):
            ledger.grant(reason="x", **wrong)


def test_a_sites_own_noise_counts_in_both_numbers(site: Path, key: PrivateKey) -> None:
    own = Mechanism(0.1, 2.0, 5)
    with Ledger(site, SHARED, key) as ledger:
        ledger.reserve(A, own, **PLACE)
        assert ledger.spent(A) == ledger.spent(A, alone=True) == pytest.approx(price(own, 5))
        reserve(ledger)
        assert ledger.spent(A, alone=True) == pytest.approx(epsilon([own, COST.alone], 1e-5))
    with Ledger(site, replace(OWN, budget_alone=4.0), key) as ledger, pytest.raises(BudgetError, match="no other site"):
        ledger.reserve(A, Mechanism(0.1, 2.0, 400), **PLACE)  # the second stop holds for the site's own noise too


def test_a_ledger_of_before_reads_verifies_and_goes_on(site: Path, key: PrivateKey) -> None:
    """The lines as they were written before there was shared noise: no budget_alone, no noise_alone."""
    with Ledger(site, OWN, key) as ledger:
        ledger.reserve(A, Mechanism(0.1, 2.0, 5), **PLACE)
        old = [line.facts for line in read_lines(site / FOLDER / FILE)]
        assert all("alone" not in json.dumps(facts) for facts in old)
    account = read_account(site)
    assert account.terms.budget_alone is None
    assert not account.counts_alone
    with Ledger(site, SHARED, key) as ledger:
        assert ledger.terms.budget_alone == 20.0
        reserve(ledger)
        assert ledger.spent(A) == pytest.approx(epsilon([Mechanism(0.1, 2.0, 5), COST.honest], 1e-5))
    assert not verify(site / FOLDER / FILE, key.public_key())
    kinds = [line.kind for line in read_lines(site / FOLDER / FILE)]
    assert [kind for kind in kinds if kind != "opened"] == ["terms", "reserve", "alone", "reserve"]
    with Ledger(site, OWN, key) as ledger:  # back to noise of its own: the second number is kept, and held
        assert ledger.terms.budget_alone == 20.0


def test_what_lost_lines_may_have_cost_alone_is_what_is_counted(site: Path, key: PrivateKey) -> None:
    witness = site.parent / "witness"
    with Ledger(site, SHARED, key, witness=witness) as ledger:
        reserve(ledger)
        alone = ledger.spent(A, alone=True)
    (site / FOLDER / FILE).unlink()
    with pytest.raises(LedgerError, match="missing"):
        Ledger(site, SHARED, key, witness=witness)
    assert accept(site, key, reason="disk", spent=0.5, witness=witness) == pytest.approx(alone)
    with Ledger(site, SHARED, key, witness=witness) as ledger:
        assert ledger.spent(A) == ledger.spent(A, alone=True) == pytest.approx(alone)


def test_a_file_that_was_changed_is_counted_by_what_it_cost_alone(site: Path, key: PrivateKey) -> None:
    with Ledger(site, SHARED, key) as ledger:
        reserve(ledger)
        alone = ledger.spent(A, alone=True)
    path = site / FOLDER / FILE
    path.write_text(path.read_text().replace('"r1"', '"r2"'))
    assert accept(site, key, reason="changed", spent=0.0) == pytest.approx(alone)
    assert read_account(site).terms.budget_alone == 20.0


def test_damaged_second_numbers_are_refused(site: Path, key: PrivateKey) -> None:
    with Ledger(site, SHARED, key) as ledger:
        reserve(ledger)
    log = AuditLog(site / FOLDER / FILE, key, owner="privacy ledger")
    log.append("grant", budget_alone="many", reason="x")
    with pytest.raises(LedgerError, match="cannot be read"):
        read_account(site)


def test_a_claim_says_whose_honesty_it_needs_and_what_holds_without() -> None:
    common = {"unit": "patient", "delta": 1e-5, "epsilon_run": 1.0, "epsilon_total": 2.5, "budget": 8.0}
    text = claim_text(**common, guarantee=True, outside=[], alone=Alone(3, 4.0, 9.5, 20.0))
    claim = parse_claim(text)
    assert (claim["honest_sites"], claim["alone_run"], claim["alone_total"]) == (3, 4.0, 9.5)
    said = " ".join(statement({"north": claim}, ["north"]))
    assert "at least 3 of the other sites" in said
    assert "9.500 of 20" in said
    assert parse_claim(claim_text(**common, guarantee=True, outside=[])) == {**common, "guarantee": True, "outside": []}
    for wrong in (text.replace('"honest_sites": 3, ', ""), text.replace("9.5", '"9"'), text.replace(": 3,", ": 3.0,")):
        assert parse_claim(wrong) == {}


def test_both_numbers_are_drawn(site: Path, key: PrivateKey) -> None:
    with Ledger(site, SHARED, key) as ledger:
        reserve(ledger)
    plot_spending(read_account(site), site / "spent.png")
    assert (site / "spent.png").read_bytes().startswith(b"\x89PNG")
