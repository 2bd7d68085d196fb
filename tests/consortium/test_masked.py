"""Masked sums over real processes and TLS: a site or the coordinator is killed at each step, and the sum is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.consortium.harness import consortium, summary
from tests.consortium.masks import accept_all, check_logs, kill, wait_set, wait_step
from tests.consortium.settings import SITES, final_weights, simulate, training

STEPS = ("advertise", "share", "train", "commit", "unmask")


@pytest.fixture(scope="module")
def masked() -> dict[str, Any]:
    """Six rounds of one stage: one for each step at which a site is killed, one for the coordinator."""
    common = training(rounds=6)
    common["stage_settings"]["diffusion"]["rounds"] = 0
    return {**common, "strategy_settings": {"secure_aggregation": "masked", "masked_norm": 1000.0}}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whoever_is_killed_at_whatever_step_the_weights_are_those_of_the_simulation(
    tmp_path: Path, data: Path, masked: dict[str, Any]
) -> None:
    """The site comes back and answers the same; the coordinator goes on with the set that it had frozen."""
    simulated = simulate(tmp_path / "simulation", data, masked)
    with consortium(tmp_path / "real", data, masked, run={"deadline_s": 400.0}) as made:
        accept_all(made)
        programs = {site: made.start_site(site) for site in SITES}
        server = made.start_server()
        for index, step in enumerate(STEPS, start=1):
            site = SITES[index % 3]
            wait_step(made, step, index, site)
            kill(programs[site])
            programs[site] = made.start_site(site)
            made.programs.append(made.programs.pop(made.programs.index(server)))  # whose end is looked at
            made.wait_event("round_done", stage="guidance", round=index)
        wait_set(made, 6)
        kill(server)
        resumed = made.start_server(resume=True)
        assert resumed.wait(600) == 0, resumed.said()
        assert final_weights(made.run_dir) == final_weights(simulated)
        check_logs(made, {"guidance": 6})
        assert all(row["missing"] == {} for row in summary(made.run_dir)["rounds"])
        assert made.stop_sites() == [143] * 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_site_that_does_not_come_back_ends_the_round_by_name_and_nothing_is_unmasked(
    tmp_path: Path, data: Path, masked: dict[str, Any]
) -> None:
    """Of three sites none may be lost."""
    with consortium(tmp_path, data, masked, run={"deadline_s": 60.0}) as made:
        accept_all(made)
        programs = {site: made.start_site(site) for site in SITES}
        server = made.start_server()
        wait_step(made, "commit", 1, SITES[0])
        kill(programs[SITES[0]])
        assert server.wait(300) == 5, server.said()
        assert "2 sites gave signatures of the set, 3 are needed; nothing was unmasked" in server.said()
        assert SITES[0] in server.said() and not (made.run_dir / "final").exists()
