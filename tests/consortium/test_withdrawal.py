"""A site's people withdraw it in the middle of its training: it stops, forgets, and is asked for nothing more."""

import json
import os
import signal
import subprocess

import pytest

from client.housekeeping import KEPT
from fed_diffmic.exchange.failures import WITHDRAWN, failure_sentence
from fed_diffmic.transport.supernode import INBOX
from tests.consortium.faults import REQUEST_BYTES
from tests.consortium.harness import BIN, SITES, START_S, alive, consortium, environment, final_weights, summary, wait
from tests.consortium.link import Link

LEAVES = SITES[-1]
TASKS = ("task", "payload", "refusal")  # lines of the audit log that come of a request
SOON_S = 60.0  # of a deadline of 150 s and a heartbeat's interval of 4 s: nobody waited for either


def say(made, *words):
    """What a person at the site types; the command's exit code."""
    command = [str(BIN / "fed-diffmic"), "client", *words, "--config", str(made.site_yaml[LEAVES])]
    return subprocess.run(command, env=environment(), capture_output=True, timeout=START_S, check=False).returncode


def withdraw_while_training(made):
    """Withdraw in the middle of a local update; seconds and position in the site's audit log of the decision."""
    worker = int(made.wait_state(LEAVES, ("working",))["worker"]["pid"])
    os.kill(worker, signal.SIGSTOP)  # so that it still trains when the command has loaded
    assert say(made, "withdraw") == 0
    wait("the end of the worker that trained", lambda: not alive(worker), SOON_S)
    wait("the line of the decision", lambda: decision(made) is not None, SOON_S)


def audit(made):
    return [json.loads(x) for x in (made.site_folder(LEAVES) / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def decision(made):
    """Where in the site's audit log the withdrawal stands, if it does."""
    lines = audit(made)
    return next((i for i, x in enumerate(lines) if x["kind"] == "control" and x["facts"]["state"] == "withdrawn"), None)


def kept(made):
    """Files of what a site keeps between tasks."""
    return [path for part in (*KEPT, INBOX) for path in (made.site_folder(LEAVES) / part).rglob("*") if path.is_file()]


def start(made):
    server = made.start_server()
    for site in SITES:
        made.start_site(site)
    made.wait_event("round_done", stage="guidance", round=1)
    return server


@pytest.mark.timeout(600)
def test_the_others_go_on_without_it(tmp_path, data, common):
    with consortium(tmp_path, data, common, run={"quorum": 0.6}) as made:
        server = start(made)
        withdraw_while_training(made)
        made.wait_event("site_withdrew", SOON_S, site=LEAVES)
        assert server.wait(200) == 0, server.said()
        after = audit(made)[decision(made) :]
        assert kept(made) == []
        assert say(made, "continue") == 2  # not by mistake
        assert made.stop_sites() == [143] * 3
    found = {(row["stage"], row["round"]): row for row in summary(made.run_dir)["rounds"]}
    assert found["guidance", 2]["missing"] == {LEAVES: failure_sentence(WITHDRAWN)}
    assert LEAVES in found["guidance", 1]["sites"] and LEAVES not in found["diffusion", 1]["sites"]
    # The request that it had in hand is answered with the code; nobody asks again, and nothing more leaves.
    answered = [(line["kind"], line["facts"].get("code")) for line in after if line["kind"] in TASKS]
    assert answered == [("refusal", WITHDRAWN)]


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
