"""Noise that three hospitals share, under masks, over real processes and TLS: one dies, and the weights are the same.

Noise and sampling come from ``privacy.test_seed`` here, at the sites and in the simulation, so that bits can be equal.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.privacy.account import read_account
from tests.consortium.harness import Consortium, consortium, summary
from tests.consortium.masks import accept_all, check_logs, kill, wait_step
from tests.consortium.programs import BIN, environment
from tests.consortium.settings import SITES, final_weights, simulate, training

PRIVACY = [
    "privacy=dp_sgd", "privacy.stages=[guidance]", "privacy.unit=image", "privacy.mechanism=distributed",
    "privacy.honest_sites=2", "privacy.budget=100", "privacy.budget_alone=200", "privacy.delta=1e-3",
    "privacy.count_noise=5", "privacy.nominal_units=12", "privacy.test_seed=5",
]  # fmt: skip


def shared() -> dict[str, Any]:
    common = training(rounds=2, steps=1)
    common["model_settings"] = {**common["model_settings"], "norm": "group", "encoder_norm": "group"}
    # The first round finds the mean of the features, the second one makes a step.
    common["model_settings"]["features"] = "centred"
    common["stage_settings"]["guidance"]["encoders"] = "frozen"
    common["stage_settings"]["diffusion"]["rounds"] = 0
    noise = {"sample_rate": 0.5, "noise_share": 0.5, "step_size": 0.001}
    masks = {"secure_aggregation": "masked"}
    return {**common, "strategy": "fedsgd", "strategy_settings": {**noise, **masks}, "privacy": PRIVACY}


def said(made: Consortium, site: str, *words: str) -> str:
    command = [str(BIN / "fed-diffmic"), *words, "--config", str(made.site_yaml[site]), *PRIVACY]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_site_dies_at_its_words_and_the_weights_are_those_of_the_simulation(tmp_path: Path, data: Path) -> None:
    common = shared()
    simulated = simulate(tmp_path / "simulation", data, common)
    with consortium(tmp_path / "real", data, common, run={"deadline_s": 900.0}) as made:
        accept_all(made)
        for site in SITES:
            made.set_policy(site, secure_aggregation="required", privacy="required", strategies=["fedsgd"])
        programs = {site: made.start_site(site, *PRIVACY) for site in SITES}
        server = made.start_server()
        wait_step(made, "commit", 1, SITES[1])
        kill(programs[SITES[1]])
        programs[SITES[1]] = made.start_site(SITES[1], *PRIVACY)
        made.programs.append(made.programs.pop(made.programs.index(server)))  # whose end is looked at
        assert server.wait(1200) == 0, server.said()
        assert final_weights(made.run_dir) == final_weights(simulated)
        check_logs(made, {"guidance": 2})
        assert made.stop_sites() == [143] * 3
        for site in SITES:
            trained = [e for e in read_account(made.site_folder(site)).entries() if e.what == "train"]
            assert [(e.round, e.settled, e.alone is not None) for e in trained] == [(1, True, True), (2, True, True)]
        found = summary(made.run_dir)["privacy"]
        assert found[0] in server.said() and "no guarantee holds (noise from a fixed seed" in found[0]
        assert "no problems" in said(made, SITES[0], "ledger", "verify")
        assert "if no other site adds noise" in said(made, SITES[0], "ledger", "project")
        shown = said(made, SITES[1], "ledger", "show")  # no figure, as for what noise from a fixed seed was to hide
        assert (
            "no epsilon holds" in shown
            and "in 2 rounds" in shown
            and "if no other site added noise: epsilon" not in shown
        )
