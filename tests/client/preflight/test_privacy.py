"""What privacy allows a site, said before the first round, and nothing spent by asking."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.preflight.privacy import check_privacy, check_shares_of_noise
from client.preflight.run import Expected, preflight
from fed_diffmic.config.compose import compose
from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.data.manifest import OWN_GROUP
from fed_diffmic.privacy.account import FILE, FOLDER, read_account
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.dp_sgd import count_mechanism, make_plan
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.units import unit_set
from fed_diffmic.provision.keys import load_private, make_site_key
from tests.toy import toy_site
from tests.training.test_local import tiny_spec

PRIVACY = PrivacyConfig(name="dp_sgd", unit="image", noise_multiplier=2.0, epsilon=None, delta=1e-3, budget=100.0,
                        logical_batch=4, stages=["guidance"])  # fmt: skip
SPEC = tiny_spec()


@pytest.fixture
def train():
    return toy_site("a", 1, count=24, side=32).train


@pytest.fixture
def key(tmp_path):
    make_site_key(tmp_path / "site.key")
    return load_private(tmp_path / "site.key")


def look(privacy, train, folder, key, spec=SPEC):
    return {check.name: check for check in check_privacy(privacy, spec, train, folder, key)}


def rounds_of(privacy, train, rounds):
    plan = make_plan(privacy, SPEC, "guidance", train).mechanism
    counts = [count_mechanism(privacy)]
    return epsilon([*counts, Mechanism(plan.sample_rate, plan.noise_multiplier, plan.steps * rounds)], privacy.delta)


def test_a_new_site_whose_budget_holds_what_is_expected(train, tmp_path, key):
    found = look(PRIVACY, train, tmp_path, key)
    assert {check.level for check in found.values()} == {"passed"}
    assert found["privacy.unit"].facts == {"units": len(train), "images": len(train)}
    budget = found["privacy.budget"].facts
    assert (budget["spent"], budget["budget"], budget["rounds"]) == (0.0, 100.0, 2)
    assert budget["after"] == rounds_of(PRIVACY, train, 2)
    assert not (tmp_path / FOLDER).exists()  # asking begins no ledger


def test_what_was_spent_before_counts_and_asking_spends_nothing(train, tmp_path, key):
    plan = make_plan(PRIVACY, SPEC, "guidance", train).mechanism
    with Ledger(tmp_path, PRIVACY, key) as ledger:
        units = unit_set(train, ledger.secret)
        ledger.settle(
            ledger.reserve(units, plan, run="r", arm="federated", stage="guidance", round_index=1), plan.steps
        )
        spent = ledger.spent(units)
    before = (tmp_path / FOLDER / FILE).read_bytes()
    facts = look(PRIVACY, train, tmp_path, key)["privacy.budget"].facts
    assert facts["spent"] == spent > 0
    more = [count_mechanism(PRIVACY), Mechanism(plan.sample_rate, plan.noise_multiplier, plan.steps * 2)]
    assert facts["after"] == read_account(tmp_path).spent(units, more) > rounds_of(PRIVACY, train, 2)
    assert (tmp_path / FOLDER / FILE).read_bytes() == before


def test_a_smaller_delta_than_the_ledgers_holds_as_it_does_in_a_round(train, tmp_path, key):
    plan = make_plan(PRIVACY, SPEC, "guidance", train).mechanism
    with Ledger(tmp_path, PRIVACY, key) as ledger:
        units = unit_set(train, ledger.secret)
        ledger.reserve(units, plan, run="r", arm="federated", stage="guidance", round_index=1)
    strict = replace(PRIVACY, delta=1e-6, budget=50.0)
    with Ledger(tmp_path, strict, key) as ledger:
        spent = ledger.spent(units)
    facts = look(strict, train, tmp_path, key)["privacy.budget"].facts
    assert (facts["spent"], facts["budget"]) == (spent, 50.0)
    assert spent > look(PRIVACY, train, tmp_path, key)["privacy.budget"].facts["spent"]


@pytest.mark.parametrize(("fits", "level", "code"), [(1, "warning", 0), (0, "failed", 5)])
def test_a_budget_that_ends_before_the_run_does(train, tmp_path, key, fits, level, code):
    small = replace(PRIVACY, budget=(rounds_of(PRIVACY, train, fits) + rounds_of(PRIVACY, train, fits + 1)) / 2)
    found = look(small, train, tmp_path, key)["privacy.budget"]
    assert (found.level, found.exit_code, found.facts["fits"]) == (level, code, fits)
    assert "ledger grant" in found.remedy


def test_a_round_or_a_run_that_takes_more_than_its_share_is_said_before(train, tmp_path, key):
    def judged(**rules):
        found = {c.name: c for c in check_privacy(PRIVACY, SPEC, train, tmp_path, key, rules=BudgetRules(**rules))}
        return found["privacy.budget"]

    plan = make_plan(PRIVACY, SPEC, "guidance", train).mechanism
    alone, whole = epsilon([plan], PRIVACY.delta), rounds_of(PRIVACY, train, 2)
    fits = judged(run_share=1.01 * whole / 100, round_share=1.01 * alone / 100)
    assert fits.level == "passed"
    dear = judged(run_share=1.0, round_share=0.99 * alone / 100)
    assert (dear.level, dear.exit_code) == ("failed", 5) and "policy.budget.round_share" in dear.cause
    long = judged(run_share=0.99 * whole / 100, round_share=1.0)
    assert long.level == "warning" and "policy.budget.run_share" in long.cause


def test_what_is_left_is_planned_with(train, tmp_path, key):
    """A first attempt's cost: noise that is computed keeps to the rest."""
    planned = replace(PRIVACY, noise_multiplier=None, epsilon=8.0, budget=None, count_noise=0.0, logical_batch=1000)
    with Ledger(tmp_path, planned, key) as ledger:
        units = unit_set(train, ledger.secret)
        ledger.reserve(units, Mechanism(1.0, 2.0), run="r", arm="federated", stage="guidance", round_index=1)
        spent = ledger.spent(units)
    found = look(planned, train, tmp_path, key)["privacy.budget"]
    assert found.level == "passed" and spent < found.facts["after"] <= 8.0
    full = look(replace(planned, budget=spent), train, tmp_path, key)["privacy.budget"]
    assert full.level == "failed" and "less than a tenth" in full.cause


def test_copies_under_two_patients_are_counted(train, tmp_path, key):
    assert look(PRIVACY, train, tmp_path, key)["privacy.alike"].level == "passed"
    twice = train.subset(np.array([0, 1, 2, 3, 0, 1]))
    found = look(PRIVACY, replace(twice, groups=np.array(list("abcdef"))), tmp_path, key)["privacy.alike"]
    assert found.level == "warning" and found.facts == {"pairs": 2, "apart": 2}
    found = look(PRIVACY, replace(twice, groups=np.array(list("abcdab"))), tmp_path, key)["privacy.alike"]
    assert found.level == "passed" and found.facts == {"pairs": 2, "apart": 0}


def test_a_ledger_that_was_cut_stops_the_site(train, tmp_path, key):
    plan = make_plan(PRIVACY, SPEC, "guidance", train).mechanism
    with Ledger(tmp_path, PRIVACY, key) as ledger:
        units = unit_set(train, ledger.secret)
        ledger.reserve(units, plan, run="r", arm="federated", stage="guidance", round_index=1)
    path = tmp_path / FOLDER / FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    found = look(PRIVACY, train, tmp_path, key)
    assert (found["privacy.ledger"].level, found["privacy.ledger"].exit_code) == ("failed", 4)
    assert "privacy.budget" not in found
    other = look(replace(PRIVACY, unit="patient"), train, tmp_path / "new", key)
    assert other["privacy.ledger"].level == "passed"


def test_without_the_sites_key_nothing_is_said_of_the_ledger(train, tmp_path):
    found = look(PRIVACY, train, tmp_path, None)
    assert found["privacy.ledger"].level == "warning" and "not looked at" in found["privacy.ledger"].cause
    assert "privacy.budget" not in found


def test_a_unit_that_the_data_do_not_name(train, tmp_path, key):
    patients = replace(PRIVACY, unit="patient", max_images=2)
    grouped = replace(train, groups=np.array([f"p{i // 4}" for i in range(len(train))]))
    found = look(patients, grouped, tmp_path, key)["privacy.unit"]
    assert found.level == "passed" and "2 of them, at random" in found.cause
    nameless = replace(train, groups=np.array([f"{OWN_GROUP}{i}.png" for i in range(len(train))]))
    found = look(patients, nameless, tmp_path, key)["privacy.unit"]
    assert found.level == "warning" and "patient_id" in found.remedy and ".png" not in found.cause


def test_a_network_that_mixes_images_and_noise_that_can_be_told(train, tmp_path, key):
    batch = replace(SPEC, model=replace(SPEC.model, encoder_norm="train"))
    found = look(replace(PRIVACY, test_seed=1), train, tmp_path, key, batch)
    assert (found["privacy.network"].level, found["privacy.network"].exit_code) == ("failed", 2)
    assert "model.encoder_norm" in found["privacy.network"].remedy
    assert found["privacy.noise"].level == "warning"


def test_as_a_part_of_the_preflight(site):
    tiny = compose(None, ["model=tiny", "stages=tiny", "model.norm=group", "model.encoder_norm=group"])
    expected = Expected(tiny.model, tiny.stages)
    Path(site.site.folder).mkdir(mode=0o700)
    names = [check.name for check in preflight(site, expected, lambda _: None, ("data", "privacy"))]
    assert not [name for name in names if name.startswith("privacy")]  # the site protects nothing
    private = replace(site, privacy=replace(PRIVACY, unit="patient", delta=1e-2))
    checks = {check.name: check for check in preflight(private, expected, lambda _: None, ("data", "privacy"))}
    assert checks["privacy.unit"].level == "passed" and checks["privacy.unit"].facts["units"] > 10
    assert checks["privacy.network"].level == checks["privacy.budget"].level == "passed"


def test_shared_noise_is_held_against_both_budgets_and_needs_a_run_that_shares_it(train, tmp_path, key):
    shared = replace(
        PRIVACY, mechanism="distributed", honest_sites=2, budget=1e3, budget_alone=1e4, noise_multiplier=None
    )
    found = look(shared, train, tmp_path, key)
    assert found["privacy.mechanism"].level == "failed"
    options = {"sample_rate": 0.5, "noise_share": 1.0}
    spec = replace(SPEC, strategy=replace(SPEC.strategy, name="fedsgd", options=options))
    good = look(shared, train, tmp_path, key, spec)["privacy.budget"]
    assert good.level == "passed"
    assert "2 others are honest" in good.cause
    short = look(replace(shared, budget_alone=0.1), train, tmp_path, key, spec)["privacy.budget"]
    assert (short.level, short.exit_code) == ("failed", 5)


def test_preflight_says_before_the_run_how_many_dishonest_sites_masks_would_bear():
    shared = replace(PRIVACY, mechanism="distributed", honest_sites=2, budget_alone=30.0)
    good = check_shares_of_noise(shared, 2, 4)
    assert good.level == "passed" and "masks over all 4 sites bear 1" in good.cause
    bad = check_shares_of_noise(shared, 2, 10)
    assert (bad.level, bad.exit_code) == ("failed", 2) and "assume 3 or more, or 0" in bad.cause
    assert check_shares_of_noise(replace(shared, honest_sites=3), 2, 10).level == "passed"
    few = check_shares_of_noise(shared, 2, 2)
    assert few.level == "warning" and "provision peers" in few.remedy
