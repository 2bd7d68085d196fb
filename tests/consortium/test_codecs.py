"""Real processes over TLS whose weights and updates cross coded train the weights of the simulation, bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.config.codecs import CODECS
from tests.consortium.harness import consortium, summary
from tests.consortium.settings import SITES, final_weights, simulate


@pytest.mark.slow
@pytest.mark.parametrize("codec", sorted(set(CODECS) - {"float32"}))  # float32: test_equality
def test_weights_that_cross_coded_equal_the_simulation(
    codec: str, tmp_path: Path, data: Path, common: dict[str, Any]
) -> None:
    coded = {**common, "strategy_settings": {"codec": codec}}
    simulated = simulate(tmp_path / "simulation", data, coded)
    with consortium(tmp_path / "real", data, coded) as made:
        for site in SITES:
            made.start_site(site)
        made.new_run("simulation")  # which names the run in every digest
        server = made.start_server()
        assert server.wait(250) == 0, server.said()
        assert final_weights(made.run_dir) == final_weights(simulated)
        found, ours = summary(made.run_dir), summary(simulated)
        assert found["status"] == "done" and all(row["missing"] == {} for row in found["rounds"])
        rounds = [row for stage in ours["stages"].values() for row in stage["history"]]
        assert [row["bytes_sent"] for row in found["rounds"]] == [row["bytes_sent"] for row in rounds]
        assert made.stop_sites() == [143] * 3
