"""A site's people withdraw it while the run needs it, or while its update is on the way."""

import pytest

from fed_diffmic.exchange.failures import WITHDRAWN, failure_sentence
from tests.consortium.harness import consortium, summary
from tests.consortium.link import Link
from tests.consortium.matrix import REQUEST_BYTES
from tests.consortium.people import LEAVES, SOON_S, decision, kept, say, withdraw_while_training
from tests.consortium.programs import START_S, wait
from tests.consortium.settings import SITES, final_weights


def start(made):
    server = made.start_server()
    for site in SITES:
        made.start_site(site)
    made.wait_event("round_started", stage="guidance", round=2)  # whose replies bring the end of the first one
    return server


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_needs_it_says_so_and_goes_on_when_it_is_back(tmp_path, data, common, undisturbed):
    with consortium(tmp_path, data, common) as made:
        server = start(made)
        withdraw_while_training(made)
        assert server.wait(SOON_S) == 5
        assert f"{LEAVES}" in server.said() and "withdrew" in server.said(), server.said()
        assert say(made, "continue", "--rejoin") == 0
        assert made.start_server(resume=True).wait(START_S) == 0
        assert made.stop_sites() == [143] * 3
    assert final_weights(made.run_dir) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_an_update_that_is_being_delivered_nothing_arrives(tmp_path, data, common):
    """The coordinator has a part of the reply already; Flower takes no other one while it waits for the rest."""
    with consortium(tmp_path, data, common, run={"quorum": 0.6}) as made:
        link = Link(made.port)
        made.reroute(LEAVES, link.port)
        server = start(made)
        link.stop_inside(REQUEST_BYTES)
        assert link.hit.wait(START_S)
        assert say(made, "withdraw") == 0
        wait("the line of the decision", lambda: decision(made) is not None, SOON_S)
        link.heal()
        made.wait_event("site_withdrew", SOON_S, site=LEAVES)
        assert server.wait(200) == 0, server.said()
        assert kept(made) == []
        made.stop_sites()
        link.close()
    found = {(row["stage"], row["round"]): row for row in summary(made.run_dir)["rounds"]}
    assert found["guidance", 2]["missing"] == {LEAVES: failure_sentence(WITHDRAWN)}
