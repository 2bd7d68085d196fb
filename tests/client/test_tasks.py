"""What a task hands on: to whom the kept state goes, under which names features are shared, how a request is kept."""

from dataclasses import replace

import numpy as np
import pytest

from client import tasks
from client.module import BASE
from client.site import Site
from client.state import SiteStore
from fed_diffmic.algorithms.base import EXTRA
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import tensors_digest
from fed_diffmic.training import stages
from fed_diffmic.training.features import SHARED, feature_key
from fed_diffmic.training.update import LocalResult
from tests.toy import ToyNet, toy_site, toy_spec

MOMENT, OWN, SENT = {"exp_avg/head.weight": np.ones(2)}, {f"{EXTRA}own": np.ones(3)}, {f"{EXTRA}sent": np.ones(4)}
PRIVACY = PrivacyConfig(
    name="dp_sgd",
    stages=["plain"],
    unit="image",
    noise_multiplier=2.0,
    epsilon=None,
    budget=100.0,
    delta=1e-3,
    weight=3,
)


@pytest.fixture(autouse=True)
def _network(monkeypatch):
    monkeypatch.setattr(stages, "build_plain", lambda *_: ToyNet())
    monkeypatch.setattr(stages, "build_guidance", lambda *_: ToyNet())
    stages._KEPT.clear()
    yield
    stages._KEPT.clear()


@pytest.fixture
def site(tmp_path):
    return Site("a", tmp_path / "a", toy_site("a", 1), "cpu", pace=0.5)


def header(spec, **more):
    given = {"stage": "plain", "round": 4, "site": "a", "base": "b" * 64, "state": "", "keep": "", "guidance": "own"}
    return {"spec": spec.to_json(), "run": spec.run_id, "arm": spec.arm, "weights": "", "ledger": "", **given, **more}


def handed_on(monkeypatch, name, site):
    """The arguments with which the update's own function is called."""
    seen = []

    def update(*args, **named):
        seen.append((args, named))
        result = LocalResult({}, 12, {"loss": 1.0})
        return (result, "head", "claim") if name == "private_round" else result

    monkeypatch.setattr(tasks, name, update)
    spec = toy_spec()
    echo = "echo" if name == "private_round" else ""
    made = tasks.update(site, spec, header(spec, ledger=echo), "module", "algorithm", {**MOMENT, **OWN}, SENT)
    (found,) = seen
    return made, *found


def test_an_update_gets_the_moments_and_the_algorithms_state_each_as_what_it_is(monkeypatch, site):
    (result, head, claim), args, named = handed_on(monkeypatch, "local_update", site)
    *rest, at, memory = args
    assert rest == ["module", site.data.train, "algorithm"] and named == {}
    assert memory.optimizer == MOMENT and memory.algorithm == OWN and memory.received == SENT
    assert (at.site, at.round_index, at.pace, str(at.device)) == ("a", 4, 0.5, "cpu")
    assert at.store is SHARED
    assert at.store_key == feature_key(toy_spec(), "plain", "b" * 64, site.data.train, own="own")
    assert (result.num_examples, head, claim) == (12, "", "")


def test_a_private_update_gets_the_same_and_the_echo(monkeypatch, site):
    site = replace(site, privacy=PRIVACY)
    made, args, named = handed_on(monkeypatch, "private_round", site)
    *rest, at, memory = args
    assert rest == [site, toy_spec(), "echo", "module", "algorithm"] and named == {}
    assert made[1:] == ("head", "claim") and (at.site, at.round_index) == ("a", 4)
    assert memory.optimizer == MOMENT and memory.algorithm == OWN and memory.received == SENT
    assert at.store_key == feature_key(toy_spec(), "plain", "b" * 64, site.data.train, own="own")


def test_an_unprotected_stage_of_a_site_that_protects_another_weighs_what_is_public(monkeypatch, site):
    site = replace(site, privacy=replace(PRIVACY, stages=["guidance"], allow_unprotected=True))
    (result, head, claim), _, _ = handed_on(monkeypatch, "local_update", site)
    assert result.num_examples == 3 and head and claim == ""


def test_a_loss_that_is_no_number_is_said_and_nothing_else_is(monkeypatch, site):
    def update(*_, **__):
        raise ValueError("the loss of image 7 of patient x")

    monkeypatch.setattr(tasks, "local_update", update)
    with pytest.raises(SiteError) as caught:
        tasks.update(site, toy_spec(), header(toy_spec()), None, None, {}, {})
    assert caught.value.code == failures.DIVERGED and "patient" not in str(caught.value)


def request(spec, **more):
    """A request to train, base and all."""
    whole = stages.initial_state(spec, "plain")
    kinds = stages.exchanged(stages.build_module(spec, "plain"))
    base = {name: value for name, value in whole.items() if name not in kinds}
    weights = {name: whole[name] for name in kinds}
    given = {"base": tensors_digest(base), "weights": tensors_digest(weights), "guidance": "", **more}
    tensors = {**{BASE + name: value for name, value in base.items()}, **weights}
    return Payload("train", header(spec, **given), tensors)


def test_the_same_request_is_answered_once_and_another_round_is_another_request(site, monkeypatch):
    """With kept moments: the state named in the reply is there, and it is the one that the next round builds on."""
    spec = toy_spec(keep=True)
    rounds, real = [], tasks.local_update

    def update(module, train, algorithm, at, memory):
        rounds.append((at.round_index, sorted(memory.optimizer)))
        return real(module, train, algorithm, at, memory)

    monkeypatch.setattr(tasks, "local_update", update)
    first = tasks.train(site, spec, request(spec, round=1))
    again = tasks.train(site, spec, request(spec, round=1))
    assert len(rounds) == 1 and again.header == first.header
    tasks.train(site, spec, request(spec, round=7))  # that alone is another
    state = tasks.train(site, spec, request(spec, round=1)).header[
        "state"
    ]  # its kept answer was replaced: the same again
    assert [index for index, _ in rounds] == [1, 7, 1] and state == first.header["state"]
    rounds.pop(1), rounds.pop(1)
    second = tasks.train(site, spec, request(spec, round=2, state=state, keep=state))
    assert [index for index, _ in rounds] == [1, 2] and rounds[0][1] == []
    kept = SiteStore(site.folder).site_state(("toy", "federated", "plain"), state)
    assert rounds[1][1] == sorted(kept) and "exp_avg/head.weight" in kept
    assert second.header["state"] != state and second.header["round"] == 2
    with pytest.raises(SiteError) as caught:
        tasks.train(site, spec, request(spec, round=3, state="0" * 64))
    assert caught.value.code == failures.NO_STATE


def test_metrics_are_of_validation_images_and_of_the_weights_that_were_sent(site, monkeypatch):
    spec, seen = toy_spec(), []
    monkeypatch.setattr(
        tasks, "predict_scores", lambda module, examples, *rest: seen.append((examples, rest)) or np.zeros((6, 3))
    )
    asked = request(spec)
    extra = {"prior": [1 / 3] * 3, "sums": False, "split": "val"}
    head = {name: value for name, value in asked.header.items() if name not in ("keep", "ledger")} | extra
    tasks.evaluate(site, spec, Payload("evaluate", head, asked.tensors))
    (examples, rest) = seen[0]
    assert examples is site.data.val
    assert rest[-1] == feature_key(spec, "plain", head["base"], site.data.val, own="")
    with pytest.raises(SiteError) as caught:
        tasks.evaluate(site, spec, Payload("evaluate", {**head, "split": "test"}, asked.tensors))
    assert caught.value.code == failures.BAD_REQUEST
