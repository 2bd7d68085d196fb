"""Real processes over TLS train the same weights as the in-process simulation, bit for bit; then a site withdraws.

One of the sites is in a network whose proxy is the only way out, and alone knows the coordinator's name. All three
stand through both runs.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from fed_diffmic.exchange.failures import LOST, WITHDRAWN, failure_sentence
from fed_diffmic.provision.keys import load_public
from fed_diffmic.release.final import load_final
from fed_diffmic.training.matrix import AT_SPECIFICITY, METRICS
from tests.consortium.harness import OUTSIDE, Consortium, consortium, summary
from tests.consortium.masks import accept_all, check_logs
from tests.consortium.people import LEAVES, SOON_S, TASKS, audit, decision, kept, say, withdraw_while_training
from tests.consortium.programs import START_S, Lines
from tests.consortium.settings import SITES, final_weights, weights_of_rounds
from tests.proxy import Proxy, serving


class HospitalProxy(Proxy):
    asked: ClassVar[list[str]] = []


@pytest.fixture(scope="module")
def standing(tmp_path_factory, data, common) -> Iterator[Consortium]:
    folder = tmp_path_factory.mktemp("standing")
    with serving(HospitalProxy) as proxy, consortium(folder, data, common) as made:
        outside = f"{OUTSIDE}:{made.port}"
        HospitalProxy.routes = {outside: f"127.0.0.1:{made.port}"}
        made.set_way(LEAVES, address=outside, proxy=f"http://{proxy}")
        for site in SITES:
            made.set_policy(site, take_model="never" if site == SITES[1] else "keep")
            made.start_site(site)
        yield made
        assert made.stop_sites() == [143] * 3


def test_weights_and_test_metrics_equal_the_simulation(standing, simulated, undisturbed):
    standing.new_run("simulation")  # which names the run in every digest
    server = standing.start_server()
    standing.wait_event("site_found", site=SITES[0])
    for program in standing.programs:
        program.look()
    assert server.wait(200) == 0, server.said()
    assert final_weights(standing.run_dir) == undisturbed
    assert set(undisturbed) == {"guidance.safetensors", "diffusion.safetensors"}
    found = summary(standing.run_dir)
    assert found["status"] == "done" and all(row["missing"] == {} for row in found["rounds"])
    # What the sites say of their own test images is what a simulation, which has them all, finds there.
    theirs, ours = found["matrix"], summary(simulated)["matrix"]
    assert set(theirs) == {"guidance", "diffusion"} and set(theirs["diffusion"]) == set(SITES)
    for stage, arm in (("diffusion", "federated"), ("guidance", "guidance/federated")):
        for site in SITES:
            said, computed = theirs[stage][site], ours[arm][site]
            assert said["complete"] and said["n"] == 3
            for name in ("n", "groups", "positives", "classes", "ranked"):
                assert said[name] == computed[name]
            for name in (*METRICS, AT_SPECIFICITY):
                assert said[name]["value"] == computed[name]["value"] is not None
                assert said[name]["low"] <= said[name]["value"] <= said[name]["high"]
    page = (standing.run_dir / "report.html").read_text(encoding="utf-8")
    assert "On the test images of 3 of 3 sites" in page and all(site in page for site in SITES)
    check_delivery(standing, found)
    assert HospitalProxy.asked and set(HospitalProxy.asked) == {f"{OUTSIDE}:{standing.port}"}


def test_masked_updates_give_the_weights_of_the_simulation(standing, data, common, tmp_path):
    """Of one round; killed at every step: test_masked.py."""
    masked = {**common, "strategy_settings": {"secure_aggregation": "masked"}}
    (expected,) = weights_of_rounds(tmp_path, data, masked, 1)
    accept_all(standing)
    standing.new_run("masked")
    settings = ("strategy.secure_aggregation=masked", "stages.guidance.rounds=1", "stages.diffusion.rounds=0")
    server = standing.start_server(*settings)
    assert server.wait(START_S) == 0, server.said()
    made = [line["facts"]["weights"] for line in standing.audit.read() if line["kind"] == "aggregate"]
    assert made == [expected]
    check_logs(standing, {"guidance": 1})


def check_delivery(made: Consortium, found: dict[str, Any]) -> None:
    """Two sites, one of them behind the proxy, keep the model, verified; the third takes none, and is named."""
    takers = (SITES[0], SITES[2])
    assert {name for name, said in found["delivery"].items() if said["has"]} == set(takers)
    for site in takers:
        folder = made.site_folder(site)
        kept = load_final(folder / "models" / "simulation", public_key=load_public(made.coordinator_key))
        assert kept.digests == found["digests"] and set(kept.history[0]["val"]) == {site}
        assert [line["kind"] for line in Lines(folder / "audit.jsonl").read()].count("model_kept") == 1
    assert not (made.site_folder(SITES[1]) / "models").exists()
    assert LEAVES in takers


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_others_go_on_without_a_site_that_withdraws_while_it_trains(standing):
    standing.new_run("second")
    server = standing.start_server("run.quorum=0.6")
    standing.wait_event("round_started", stage="guidance", round=2)  # whose replies bring the end of the first one
    withdraw_while_training(standing)
    standing.wait_event("site_withdrew", SOON_S, site=LEAVES)
    assert server.wait(200) == 0, server.said()
    after = audit(standing)[decision(standing) :]
    assert kept(standing) == []
    assert say(standing, "continue") == 2  # not by mistake
    found = {(row["stage"], row["round"]): row for row in summary(standing.run_dir)["rounds"]}
    # On a busy machine Flower may tell of the worker's end before the decision arrives; the quorum waits for neither.
    reasons = {failure_sentence(code) for code in (WITHDRAWN, *LOST)}
    assert set(found["guidance", 2]["missing"]) == {LEAVES} and found["guidance", 2]["missing"][LEAVES] in reasons
    assert LEAVES in found["guidance", 1]["sites"] and LEAVES not in found["diffusion", 1]["sites"]
    # A busy machine's site may be asked once more after Flower lost its worker. Every answer is the code, nothing else
    # leaves, and once the coordinator has heard the code, nobody asks again.
    answered = [(line["kind"], line["facts"].get("code")) for line in after if line["kind"] in TASKS]
    assert set(answered) == {("refusal", WITHDRAWN)}
    told = [line for line in standing.audit.read() if line["facts"].get("site") == LEAVES]
    heard = next(i for i, x in enumerate(told) if x["kind"] == "failure" and x["facts"]["code"] == WITHDRAWN)
    assert "request" not in {line["kind"] for line in told[heard:]}
