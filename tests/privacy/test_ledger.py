import math
import os
from dataclasses import replace

import pytest

from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.errors import BudgetError, LedgerError, MachineError, RoundShareError, RunShareError
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.privacy import continuity
from fed_diffmic.privacy import ledger as module
from fed_diffmic.privacy.account import FILE, FOLDER, read_account
from fed_diffmic.privacy.accounting import Mechanism, as_unit, epsilon
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.ledger_lines import entries
from fed_diffmic.privacy.shares import shares
from tests.privacy.ledgers import BOTH, PLACE, PRIVACY, STEP, A, B
from tests.privacy.test_units import units


def test_a_reservation_counts_before_and_less_when_settled(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        assert ledger.spent(A) == 0
        number = ledger.reserve(A, STEP, **PLACE)
        full = ledger.spent(A)
        assert full == pytest.approx(epsilon([STEP], 1e-5))
        ledger.settle(number, 2)
        assert ledger.spent(A) == pytest.approx(epsilon([Mechanism(0.1, 2.0, 2)], 1e-5))
        assert ledger.spent(A) < full
        with pytest.raises(ValueError, match="settled"):
            ledger.settle(number, 2)
    with Ledger(site, PRIVACY, key) as again:
        assert again.spent(A) == pytest.approx(epsilon([Mechanism(0.1, 2.0, 2)], 1e-5))
        assert again.spent(A, run="r1") == again.spent(A) and again.spent(A, run="other") == 0


def test_spending_belongs_to_the_units(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        assert ledger.spent(B) == 0
        assert ledger.spent(BOTH) == ledger.spent(A) > 0  # one image of patient a is in it
        ledger.reserve(B, STEP, **{**PLACE, "run": "r2"})
        assert ledger.spent(BOTH) == pytest.approx(ledger.spent(A))  # nobody was in both
        ledger.reserve(BOTH, STEP, **{**PLACE, "run": "r3"})
        assert ledger.spent(A) == pytest.approx(epsilon([STEP, STEP], 1e-5))
        assert ledger.spent(A) == ledger.total()


def test_a_round_over_the_budget_is_refused_and_writes_nothing(site, key):
    tight = replace(PRIVACY, budget=epsilon([STEP, STEP], 1e-5) + 1e-6)
    with Ledger(site, tight, key) as ledger:
        assert ledger.rounds_left(A, STEP) == 2
        for _ in range(2):
            ledger.reserve(A, STEP, **PLACE)
        before = (site / FOLDER / FILE).read_bytes()
        with pytest.raises(BudgetError, match="budget of this site"):
            ledger.reserve(A, STEP, **PLACE)
        assert (site / FOLDER / FILE).read_bytes() == before
        assert ledger.rounds_left(A, STEP) == 0 and ledger.rounds_left(B, STEP) == 2
        ledger.reserve(B, STEP, **PLACE)


def test_only_a_grant_raises_the_budget(site, key):
    small = replace(PRIVACY, budget=0.5)
    with Ledger(site, small, key) as ledger, pytest.raises(BudgetError):
        ledger.reserve(A, STEP, **PLACE)
    with Ledger(site, replace(PRIVACY, budget=100.0), key) as ledger:
        assert ledger.terms.budget == 0.5  # the configuration cannot raise it
        with pytest.raises(BudgetError):
            ledger.reserve(A, STEP, **PLACE)
        with pytest.raises(ValueError, match="reason"):
            ledger.grant(9.0, " ")
        ledger.grant(9.0, "the board agreed")
        ledger.reserve(A, STEP, **PLACE)
    with Ledger(site, small, key) as ledger:
        assert ledger.terms.budget == 0.5  # but lower it


def test_a_smaller_delta_holds_and_a_larger_one_does_not(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    with Ledger(site, replace(PRIVACY, delta=1e-3), key) as ledger:
        assert ledger.spent(A) == pytest.approx(epsilon([STEP], 1e-5))
    with Ledger(site, replace(PRIVACY, delta=1e-7), key) as ledger:
        assert ledger.spent(A) == pytest.approx(epsilon([STEP], 1e-7))


def test_training_without_privacy_voids_the_units_it_saw(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        for _ in range(2):
            ledger.unprotected(A, **PLACE)
        assert ledger.spent(BOTH) == math.inf and ledger.spent(B) == 0
        assert len(ledger.entries()) == 1
        with pytest.raises(BudgetError):
            ledger.reserve(A, STEP, **PLACE)


def test_noise_from_a_seed_protects_nothing_afterwards(site, key, tmp_path):
    """For its own run it counts as noise does, so that tests see what a run does."""
    witness, seeded = continuity.witness_of(tmp_path / "site.key"), replace(PRIVACY, test_seed=1)
    with Ledger(site, seeded, key, witness=witness) as ledger:
        ledger.settle(ledger.reserve(A, STEP, **PLACE), 5)
        ledger.reserve(A, STEP, **PLACE)
        assert ledger.spent(A) == pytest.approx(epsilon([STEP, STEP], 1e-5))
        assert continuity.read_witness(witness).spent == math.inf
    assert read_account(site).total() == math.inf
    with Ledger(site, PRIVACY, key, witness=witness) as ledger:
        assert ledger.spent(A) == math.inf and ledger.spent(B) == 0
        with pytest.raises(BudgetError):
            ledger.reserve(A, STEP, **PLACE)
        ledger.reserve(B, STEP, **PLACE)
    assert [entry.tested for entry in read_account(site).entries()] == [True, True, False]


def test_what_was_counted_by_image_counts_for_the_patient(site, key):
    path = site / FOLDER / FILE
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    lines = read_lines(path)
    as_images = [replace(e, unit="image") for e in entries(lines)]
    with Ledger(site, PRIVACY, key) as ledger:
        ledger._entries = as_images
        assert ledger.spent(A) == pytest.approx(epsilon([as_unit(STEP, "image", "patient", 2)], 1e-5))


def test_a_patient_whose_images_each_counted_as_one_pays_for_all_of_them(site, key):
    """Of an earlier table without patients: a gradient for each image, each clipped by itself."""
    apart, together = units(*((n, f"scan-{n}") for n in range(5))), units(*((n, "a") for n in range(5)))
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(apart, STEP, **PLACE)
        assert ledger.spent(apart) == pytest.approx(epsilon([STEP], 1e-5))
        all_five = replace(STEP, images=5)
        assert ledger.spent(together) == pytest.approx(epsilon([all_five], 1e-5))
        assert ledger.spent(together) > 2 * ledger.spent(apart)
        left = BudgetRules(run_share=1.0, round_share=1.0)
    with Ledger(site, PRIVACY, key, rules=left) as ledger:
        assert ledger.allowance(together, "r2").left == pytest.approx(8 - epsilon([all_five], 1e-5))
        assert ledger.spent(together, [STEP]) == pytest.approx(epsilon([all_five, STEP], 1e-5))


def test_another_unit_in_the_configuration_is_refused(site, key):
    Ledger(site, PRIVACY, key).close()
    with pytest.raises(LedgerError, match="counts units of patients") as caught:
        Ledger(site, replace(PRIVACY, unit="image"), key)
    assert "keeps its unit" in caught.value.remedy
    Ledger(site, PRIVACY, key).close()  # the lock was given back


def test_one_writer(site, key, monkeypatch):
    monkeypatch.setattr(module, "LOCK_S", 0.2)
    with Ledger(site, PRIVACY, key), pytest.raises(MachineError, match="held by another"):
        Ledger(site, PRIVACY, key)


def test_training_without_privacy_is_written_once_a_stage_of_a_run(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        for run in ("r1", "r2"):
            for stage in ("guidance", "diffusion"):
                for index in (1, 2):
                    ledger.unprotected(A, **{**PLACE, "run": run, "stage": stage, "round_index": index})
        ledger.unprotected(B, **PLACE)
        assert [(e.units, e.run, e.stage, e.round) for e in ledger.entries()] == [
            *((A.name, run, stage, 1) for run in ("r1", "r2") for stage in ("guidance", "diffusion")),
            (B.name, "r1", "guidance", 1),
        ]


def test_what_others_spent_takes_nothing_of_a_runs_share(site, key):
    """A run's share is of what was left when it began; what counts against it is its own lines."""
    rdp = replace(PRIVACY, accountant="rdp")
    two, three = (epsilon([STEP] * n, 1e-5, "rdp") for n in (2, 3))
    budget = three + 2 * two + 1e-6  # half of what three rounds leave is two rounds
    with Ledger(site, replace(rdp, budget=budget), key, rules=BudgetRules(run_share=0.5, round_share=1.0)) as ledger:
        before = ledger.allowance(A, "late")
        assert (before.left, before.run) == (pytest.approx(budget), pytest.approx(budget / 2))
        for _ in range(3):
            ledger.reserve(A, STEP, **PLACE)
        late = ledger.allowance(A, "late")
        assert late.left == pytest.approx(budget - three) and late.run == pytest.approx(two)
        assert ledger.allowance(A, "r1") == before, "its first line stands after nothing"
        ledger.reserve(A, STEP, **{**PLACE, "run": "late"})
        assert ledger.allowance(A, "late") == late
        ledger.reserve(A, STEP, **{**PLACE, "run": "late"})
        assert ledger.spent(A, run="late") == pytest.approx(two) and ledger.spent(A) > late.run
        with pytest.raises(RunShareError):
            ledger.reserve(A, STEP, **{**PLACE, "run": "late"})


def test_a_release_of_counts_is_held_to_the_runs_share_and_not_to_a_rounds(site, key):
    alone, rules = epsilon([STEP], 1e-5), BudgetRules(run_share=0.5, round_share=0.01)
    with Ledger(site, replace(PRIVACY, budget=4 * alone), key, rules=rules) as ledger:
        with pytest.raises(RoundShareError):
            ledger.reserve(A, STEP, **PLACE)
        ledger.reserve(A, STEP, **PLACE, what="counts")
        assert [e.what for e in ledger.entries()] == ["counts"]


def test_a_folder_that_cannot_be_written_beside_the_key_stops_nobody(site, key, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    witness = continuity.witness_of(tmp_path / "site.key")
    with Ledger(site, PRIVACY, key, witness=witness) as ledger:
        ledger.reserve(A, STEP, **PLACE)
    assert not witness.exists()


def test_a_run_and_a_round_take_their_share_of_what_was_left_when_the_run_began(site, key):
    alone, rules = epsilon([STEP], 1e-5), BudgetRules(run_share=0.5, round_share=0.3)
    wide = replace(PRIVACY, budget=alone / 0.3 + 1e-6)
    half = wide.budget / 2
    with Ledger(site, wide, key, rules=rules) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        fits = next(n for n in range(1, 100) if epsilon([STEP] * (n + 1), 1e-5) > half)
        for _ in range(fits - 1):
            ledger.reserve(A, STEP, **PLACE)
        with pytest.raises(RunShareError, match="a run may take"):
            ledger.reserve(A, STEP, **PLACE)
        assert ledger.allowance(A, "r1").left == pytest.approx(wide.budget)
        left = ledger.allowance(A, "r2").left
        assert left == pytest.approx(wide.budget - ledger.spent(A))
        with pytest.raises(RoundShareError, match="by itself"):
            ledger.reserve(A, STEP, **{**PLACE, "run": "r2"})
        ledger.reserve(B, STEP, **{**PLACE, "run": "r3"})  # nobody of A is in it: all is left


def test_shares_by_default_leave_a_run_what_it_was_planned_for():
    rules = BudgetRules()
    most = shares(8.0, replace(PRIVACY, epsilon=8.0), rules)
    assert (most.left, most.run, most.round) == (8.0, 8.0, 8.0 / 3)
    assert shares(24.0, replace(PRIVACY, epsilon=2.0), rules).run == 8.0
    assert shares(24.0, replace(PRIVACY, epsilon=None, noise_multiplier=1.0), rules).run == 8.0
    assert shares(3.0, replace(PRIVACY, epsilon=8.0), rules).run == 3.0
    assert shares(8.0, replace(PRIVACY, epsilon=8.0), replace(rules, run_share=0.5)).run == 4.0
    assert shares(8.0, PRIVACY, None).round == 8.0
    assert shares(-math.inf, PRIVACY, rules).run == 0 == shares(-1.0, PRIVACY, None).run


def test_no_name_of_a_patient_is_written(site, key):
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(units((11, "Jane Roe 4711")), STEP, **PLACE)
    for path in site.rglob("*"):
        if path.is_file():
            assert b"Jane" not in path.read_bytes() and path.stat().st_mode & 0o077 == 0
