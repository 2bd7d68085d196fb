"""What each site is asked: its own state, its own guidance network, its own ledger, and who is asked at all."""

from types import SimpleNamespace

import pytest

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.payload import Payload
from server.exchange import EvaluateRequest, Outcome, StageTask, TrainRequest
from server.sites import Sites, site_update
from server.terms import RunTerms
from tests.toy import Events, toy_spec

NAMES = [f"s{number}" for number in range(10)]
TASK = StageTask("plain", {}, "base", {"s0": "guidance-0", "s1": "guidance-1"})


class Asked(Sites):
    """Keeps what would be asked, instead of asking."""

    def _exchange(self, question):
        self.last = question
        return Outcome()


def members(**strategy):
    return Asked(None, toy_spec(strategy=StrategyConfig(**strategy)), Events([]), RunTerms(["plain"], NAMES))


def train(made, round_index=2):
    states, kept, ledgers = {"s0": "state-0", "s1": "state-1"}, {"s1": "keep-1"}, {"s0": "head-0"}
    made.train(TrainRequest(TASK, {}, build_algorithm(StrategyConfig()), round_index, 0.0, states, kept, ledgers))
    return made.last


def test_each_site_builds_on_its_own_state_and_keeps_that_of_the_best_round():
    asked = train(members())
    assert asked.header("s0") == {"state": "state-0", "keep": "", "guidance": "guidance-0", "ledger": "head-0"}
    assert asked.header("s1") == {"state": "state-1", "keep": "keep-1", "guidance": "guidance-1", "ledger": ""}
    assert set(asked.header("s7").values()) == {""}


def test_the_memory_over_all_runs_goes_before_what_this_run_saw():
    made = members()
    made.hooks = SimpleNamespace(echo=lambda site: {"s0": "memory-0"}.get(site, ""))
    assert train(made).header("s0")["ledger"] == "memory-0"
    made.hooks = SimpleNamespace(echo=lambda site: "")
    assert train(made).header("s0")["ledger"] == "head-0"


def test_the_base_goes_with_the_first_round():
    assert [train(members(), index).attach_base for index in (1, 2, 3)] == [True, False, False]


def test_validation_metrics_are_asked_of_each_sites_own_model():
    made = members()
    made.evaluate(EvaluateRequest(TASK, {}, [0.5, 0.3, 0.2], 3, 0.0, {"s0": "own-0"}))
    assert made.last.header("s0") == {
        "state": "own-0", "guidance": "guidance-0", "prior": [0.5, 0.3, 0.2], "sums": False, "split": "val",
    }  # fmt: skip
    assert made.last.header("s1")["state"] == "" and made.last.header("s1")["guidance"] == "guidance-1"
    assert made.last.round_index == 3


def test_a_guidance_network_of_its_own_stands_below_the_diffusion_stage_alone():
    personal = {"guidance": {"a": "1"}, "diffusion": {"a": "2"}, "plain": {"a": "3"}}
    assert StageTask.of("diffusion", {}, personal).guidance == {"a": "1"}
    assert StageTask.of("plain", {}, personal).guidance == {} == StageTask.of("guidance", {}, personal).guidance
    assert StageTask.of("diffusion", {}).guidance == {}


def test_who_takes_part_is_drawn_anew_for_each_round_and_stage():
    made = members(participation=0.3)
    drawn = [made.participants("plain", index) for index in range(1, 21)]
    assert all(len(names) == 3 and names <= set(NAMES) for names in drawn)
    assert drawn == [made.participants("plain", index) for index in range(1, 21)]
    assert len({frozenset(names) for names in drawn}) > 10 and set().union(*drawn) == set(NAMES)
    assert drawn != [made.participants("guidance", index) for index in range(1, 21)]
    assert members().participants("plain", 1) is None
    assert train(made).asked == drawn[1]


def test_an_algorithm_sees_a_sites_own_numbers_apart_from_its_weights():
    reply = Payload("train.reply", {"num_examples": 7}, {"w": 1, "algorithm/c": 2}, {"steps": 3.0, "initial_loss": 0.5})
    found = site_update("a", reply)
    assert (found.site, found.tensors, found.algorithm_tensors) == ("a", {"w": 1}, {"algorithm/c": 2})
    assert (found.num_examples, found.steps, found.initial_loss) == (7, 3.0, 0.5)


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.01, 1), (0.96, 10)])
def test_a_share_of_the_sites_is_at_least_one(share, count):
    assert len(members(participation=share).participants("plain", 1)) == count
