"""Private training over real processes: a killed worker's site goes on, one runs out of budget, the run says so."""

import os
import signal
import subprocess

import numpy as np
import pytest

from fed_diffmic.files import load_tensors
from fed_diffmic.privacy.account import read_account
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.release.provenance import PROVENANCE, verify_statement
from tests.consortium.harness import consortium, summary
from tests.consortium.programs import BIN, START_S, environment, wait
from tests.consortium.settings import SITES, training

DELTA = 1e-3
ROUND = Mechanism(1 / 3, 2.0, 3)  # 4 of 12 images a step, one pass
COUNTS = Mechanism(1.0, 5.0, 1)
FULL, KILLED, SHORT = SITES


def settings(budget):
    return [
        "privacy=dp_sgd", "privacy.unit=image", "privacy.noise_multiplier=2", "privacy.epsilon=null",
        f"privacy.budget={budget!r}", f"privacy.delta={DELTA}", "privacy.logical_batch=4", "privacy.nominal_units=12",
        "privacy.count_noise=5", "privacy.weight=3", "policy.budget.run_share=1", "policy.budget.round_share=1",
    ]  # fmt: skip


def begun(folder, number):
    """Whether the ledger says that a round was begun and not that it ended."""
    return any(e.what == "train" and e.round == number and not e.settled for e in read_account(folder).entries())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_is_killed_and_one_runs_out_of_budget(tmp_path, data):
    common = training()
    common["model_settings"] = {
        **common["model_settings"],
        "norm": "group",
        "encoder_norm": "group",
        "features": "centred",
    }
    common["stage_settings"]["guidance"] |= {"encoders": "frozen"}  # the first round finds the centre, with noise
    budgets = {FULL: 100.0, KILLED: 100.0, SHORT: epsilon([ROUND, COUNTS], DELTA) + 1e-6}
    with consortium(tmp_path, data, common, run={"quorum": 0.6}) as made:
        server = made.start_server()
        for site in SITES:
            made.start_site(site, *settings(budgets[site]))
        made.wait_event("round_started", stage="guidance", round=2)  # whose replies bring the end of the first one
        wait("a round begun", lambda: begun(made.site_folder(KILLED), 2), START_S, 0.005)
        os.kill(int(made.site_state(KILLED)["worker"]["pid"]), signal.SIGKILL)
        assert server.wait(300) == 0, server.said()
        assert made.stop_sites() == [143] * 3
    found = summary(made.run_dir)
    centre = load_tensors(made.run_dir / "final" / "guidance.safetensors")["global_centre.mean"]
    assert np.isfinite(centre).all() and np.abs(centre).min() > 0  # noise in every coordinate
    rounds = {(row["stage"], row["round"]): row for row in found["rounds"]}
    assert set(rounds) == {("guidance", 1), ("guidance", 2), ("diffusion", 1)}
    for key, row in rounds.items():
        assert (SHORT in row["missing"]) == (key != ("guidance", 1)), key
        assert set(row["missing"]) <= {SHORT}, row["missing"]
    assert "privacy budget" in str(rounds["guidance", 2]["missing"][SHORT])

    accounts = {site: read_account(made.site_folder(site)) for site in SITES}
    assert accounts[SHORT].total() <= budgets[SHORT] < epsilon([ROUND] * 2 + [COUNTS], DELTA)
    assert accounts[FULL].total() == epsilon([ROUND] * 3 + [COUNTS], DELTA)
    # What was begun before the kill counts, and what was done again after it too.
    trained = [(entry.stage, entry.round) for entry in accounts[KILLED].entries() if entry.what == "train"]
    assert sorted(trained) == [("diffusion", 1), *(("guidance", n) for n in (1, 2, 2))]
    assert accounts[KILLED].total() == epsilon([ROUND] * 4 + [COUNTS], DELTA)

    assert found["privacy"][0] in server.said()
    statement, _ = verify_statement(made.run_dir / "final" / PROVENANCE, None)
    assert set(statement["privacy"]) == set(SITES)
    said = " ".join(found["privacy"])
    assert f"epsilon {accounts[FULL].total():.3f} of 100" in said
    assert f"epsilon {accounts[SHORT].total():.3f} of {budgets[SHORT]:g}" in said
    for number, site in enumerate(SITES):
        command = [str(BIN / "fed-diffmic"), "ledger", "verify", "--config", str(made.site_yaml[site])]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 and "no problems" in done.stdout, (number, done.stdout + done.stderr)
