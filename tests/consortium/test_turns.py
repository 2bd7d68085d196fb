"""Real sites that share a machine: one at a time has a request in hand, and one that dies in its turn stops nobody."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.consortium.harness import consortium, summary
from tests.consortium.programs import wait
from tests.consortium.settings import SITES, final_weights


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sites_take_turns_and_one_that_dies_in_its_own_frees_it(
    tmp_path: Path, data: Path, common: dict[str, Any], undisturbed: dict[str, bytes]
) -> None:
    with consortium(tmp_path / "real", data, common) as made:
        for site in SITES:
            made.set_turn(site, tmp_path / "turn")
            made.start_site(site)
        made.new_run("simulation")  # which names the run in every digest
        server = made.start_server()
        made.wait_event("round_started", 600, stage="guidance", round=1)
        worked: set[str] = set()

        def at_work() -> list[str]:
            return [site for site in SITES if made.site_state(site)["worker"].get("state") == "working"]

        def all_worked() -> bool:
            now = at_work()
            assert len(now) <= 1, now
            worked.update(now)
            return len(worked) == len(SITES)

        wait("every site's turn", all_worked, 300, 0.002)
        wait("the last one's end", lambda: not at_work(), 120)
        (site,) = wait("another turn", at_work, 300, 0.002)
        node = made.site_state(site)["node"]["pid"]
        os.kill(node, signal.SIGKILL)
        for program in made.programs:
            program.look()
        assert server.wait(800) == 0, server.said()
        assert final_weights(made.run_dir) == undisturbed
        found = summary(made.run_dir)
        assert found["status"] == "done" and all(row["missing"] == {} for row in found["rounds"])
        assert made.stop_sites() == [143] * 3
