"""Masked sums of five hospitals over real processes and TLS, one of which dies in the first round for good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fed_diffmic.exchange.audit import read_lines
from tests.consortium.harness import consortium, summary
from tests.consortium.masks import accept_all, kill, sets_of, wait_step
from tests.consortium.settings import SITES, final_weights, simulate, training, write_data

FIVE = (*SITES, "delta", "elder")
DEAD, LEFT = FIVE[4], sorted(FIVE[:4])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_one_of_five_is_lost_and_the_weights_are_those_of_the_simulation_without_it(tmp_path: Path) -> None:
    """Its words of round 1 arrived, and stay in the sum; of round 2 they are not in it. Under ``required`` no metrics
    leave and the last round is the model, so the simulation judges that one alone.
    """
    write_data(tmp_path / "data", images=12, sites=FIVE, splits=("train", "train", "train", "test"))
    common = training(rounds=2)
    common["stage_settings"]["diffusion"]["rounds"] = 0
    common["strategy_settings"] = {"secure_aggregation": "masked", "masked_norm": 1000.0}
    absent = {**common, "privacy": [f"conditions.absent=[{DEAD}:2]", "run.quorum=0.8", "run.metrics_every=2"]}
    simulated = simulate(tmp_path / "simulation", tmp_path / "data", absent)
    run = {"deadline_s": 900.0, "quorum": 0.8}
    with consortium(tmp_path / "real", tmp_path / "data", common, run=run, sites=FIVE) as made:
        accept_all(made)
        for site in FIVE:
            made.set_policy(site, secure_aggregation="required", min_sites=3)
        programs = {site: made.start_site(site) for site in FIVE}
        server = made.start_server()
        wait_step(made, "commit", 1, DEAD)
        kill(programs[DEAD])
        assert server.wait(1200) == 0, server.said()
        assert final_weights(made.run_dir) == final_weights(simulated)
        sets = [json.loads(text) for _, (text,) in sorted(sets_of(made, FIVE[0]).items())]
        assert [(one["summed"], one["dropped"]) for one in sets] == [(sorted(FIVE), []), (LEFT, [])]
        named = [
            line.facts["set"]
            for line in read_lines(made.run_dir / "audit.jsonl")
            if line.kind == "masked_set" and line.facts["purpose"] == "train"
        ]
        assert all(sets_of(made, site) == sets_of(made, FIVE[0]) for site in LEFT)
        assert [json.loads(text) for text in named] == sets
        assert [sorted(row["missing"]) for row in summary(made.run_dir)["rounds"]] == [[DEAD], [DEAD]]
        assert made.stop_sites() == [143] * 4
