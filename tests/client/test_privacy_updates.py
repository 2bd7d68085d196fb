"""What leaves a private site: noised, charged before it is computed, coded after the noise."""

from dataclasses import replace

import numpy as np
import pytest

from client import privacy as client_privacy
from client import site as client_site
from client.site import Protection
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.codecs import build_codec, code
from fed_diffmic.files import tensors_digest
from fed_diffmic.privacy.account import read_account
from fed_diffmic.privacy.accounting import epsilon
from fed_diffmic.training import stages
from tests.client.private import COUNTS, PRIVACY, ROUND, PrivateNet, account, federate, grid_of, sent_updates, spec
from tests.toy import toy_grid, toy_site


@pytest.fixture(autouse=True)
def _network(monkeypatch):
    monkeypatch.setattr(stages, "build_plain", lambda *_: PrivateNet())
    stages._KEPT.clear()
    yield
    stages._KEPT.clear()


def test_noise_changes_what_leaves(tmp_path, monkeypatch):
    """Two sites with the same images do not send the same update; without noise they would."""
    for sigma, close in ((2.0, False), (1e-9, True)):
        sent = sent_updates(monkeypatch)
        folder = tmp_path / str(sigma)
        loud = replace(PRIVACY, noise_multiplier=sigma, budget=1e30, logical_batch=12, count_noise=0.0)
        grid, source = toy_grid(folder, ("a", "b"))
        source.sites["b"] = replace(source.sites["a"], name="b")
        client_site.register_source(source, protection=lambda _, own=loud: Protection(own))
        federate(folder, grid, spec(1))
        (_, first), (_, second) = sorted(sent, key=lambda pair: pair[0])[:2]
        assert np.allclose(first.tensors["head.weight"], second.tensors["head.weight"], atol=1e-6) == close


def test_the_cost_stands_in_the_ledger_before_anything_is_computed(tmp_path, monkeypatch):
    """Seen from inside the update: an open line with its mechanism; an update that dies leaves it counted in full."""
    seen = []

    def dying(module, train, algorithm, at, *_, **__):
        seen.append([(e.what, e.round, e.settled, e.mechanism) for e in account(tmp_path, at.site).entries()])
        raise ValueError("the update ends here")

    monkeypatch.setattr(client_privacy, "private_update", dying)
    with pytest.raises(RoundError):
        federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), spec(1))
    assert seen[0] == [("counts", 0, True, COUNTS), ("train", 1, False, ROUND)]
    assert account(tmp_path, "a").total() == pytest.approx(epsilon([ROUND, COUNTS], 1e-3))


def test_noised_counts_are_given_again_for_the_same_data_only(tmp_path):
    data = toy_site("a", 1)
    site = client_site.Site("a", tmp_path / "a", data, "cpu", privacy=PRIVACY)
    first = client_privacy.counts_of_run(site, spec())
    assert client_privacy.counts_of_run(site, spec()) == first
    other = replace(site, data=replace(data, train=data.train.subset(np.arange(9))))
    second = client_privacy.counts_of_run(other, spec())
    assert second != first and client_privacy.counts_of_run(other, spec()) == second
    kept = read_account(tmp_path / "a" / "arms" / "federated")
    assert [e.what for e in kept.entries()] == ["counts"] * 2
    assert len({e.units for e in kept.entries()}) == 2
    assert client_privacy.counts_of_run(other, replace(spec(), run_id="another")) != second


def test_the_noise_of_counts_is_of_the_site_and_the_run(tmp_path):
    """With a seed, which shows what goes into it: the same again, and another for each name and run."""
    data, seeded = toy_site("a", 1), replace(PRIVACY, test_seed=1)

    def counts(folder, name="a", run="toy"):
        site = client_site.Site(name, tmp_path / folder, data, "cpu", privacy=seeded)
        return tuple(client_privacy.counts_of_run(site, replace(spec(), run_id=run)))

    first = counts("one")
    assert counts("two") == first
    assert len({first, counts("three", name="b"), counts("four", run="another")}) == 3


def test_a_claim_says_what_the_run_and_what_all_runs_spent(tmp_path):
    for number, run in enumerate(("first", "second"), start=1):
        made = replace(spec(1), run_id=run)
        final = federate(tmp_path / run, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), made)
        claim = final.history[-1]["privacy"]["a"]
        assert claim["epsilon_run"] == pytest.approx(epsilon([ROUND, COUNTS], 1e-3))
        assert claim["epsilon_total"] == pytest.approx(epsilon([ROUND, COUNTS] * number, 1e-3))
        assert claim["budget"] == 100.0 and claim["delta"] == 1e-3


@pytest.mark.parametrize("strategy", ["ditto", "qfedavg"])
def test_a_site_refuses_a_strategy_that_reads_images_outside_the_private_update(tmp_path, strategy):
    """Whatever the coordinator says: nothing is trained, and no training is spent."""
    from fed_diffmic.config.simulation import StrategyConfig

    made = replace(spec(), strategy=StrategyConfig(name=strategy))
    with pytest.raises(RoundError, match=failures.FAILURES[failures.UNPROTECTED]):
        federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), made)
    for name in ("a", "b"):
        assert [e.what for e in account(tmp_path, name).entries()] == ["counts"]  # asked for before any training


@pytest.mark.parametrize("strategy", ["scaffold", "feddyn", "fedprox", "fednova", "fedadam", "median"])
def test_the_others_train_with_privacy(tmp_path, strategy):
    """With next to no noise, all units in each step and a bound that nothing meets: as without privacy."""
    from fed_diffmic.config.simulation import StrategyConfig

    stage = {"optimizer": "sgd", "batch_size": 12, "lr": 0.05}
    made = replace(spec(rounds=2, **stage), strategy=StrategyConfig(name=strategy))
    quiet = replace(
        PRIVACY,
        noise_multiplier=1e-12,
        max_grad_norm=1e3,
        budget=1e300,
        logical_batch=12,
        count_noise=0.0,
        validation="listed",
    )
    private = federate(tmp_path / "one", grid_of(tmp_path / "one", {"a": quiet, "b": quiet}), made)
    plain = PrivacyConfig()
    free = federate(tmp_path / "two", grid_of(tmp_path / "two", {"a": plain, "b": plain}), made)
    assert private.history[-1]["privacy"].keys() == {"a", "b"}
    begun = stages.build_plain().state_dict()
    for name in ("head.weight", "head.bias"):
        close = 0.1 if strategy == "fedadam" else 1e-5  # it divides by what may be next to nothing, and moves by 1
        np.testing.assert_allclose(private.states["plain"][name], free.states["plain"][name], rtol=0, atol=close)
        assert not np.allclose(private.states["plain"][name], begun[name], atol=1e-3)


def test_coding_comes_after_the_noise(tmp_path, monkeypatch):
    """What is coded is the noised update, and what coding leaves out is of noised updates only: it costs nothing."""
    from client import tasks

    noised, given = [], []
    private, coded = tasks.private_round, tasks.coded_update

    def watched(*args):
        result, head, claim = private(*args)
        noised.append({name: value.copy() for name, value in result.tensors.items()})
        return result, head, claim

    def coding(spec, tensors, request, left_out):
        given.append((tensors, request.tensors, left_out, coded(spec, tensors, request, left_out)))
        return given[-1][-1]

    monkeypatch.setattr(tasks, "private_round", watched)
    monkeypatch.setattr(tasks, "coded_update", coding)
    made = spec(rounds=2)
    made = replace(made, strategy=replace(made.strategy, codec="int8"))
    final = federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY}), made, sites=["a"])
    assert len(noised) == len(given) == 2
    codec = build_codec(made.strategy)
    for update, (tensors, sent, left_out, (travels, residual)) in zip(noised, given, strict=True):
        assert tensors_digest(update) == tensors_digest(tensors)
        again = code(codec, update, sent, left_out)
        assert tensors_digest(again.travels) == tensors_digest(travels)
        assert {"residual/" + name for name in again.residual} == residual.keys() != set()
    assert tensors_digest({"residual/" + name: value for name, value in given[1][2].items()}) == tensors_digest(
        given[0][3][1]
    )
    exact = federate(tmp_path / "exact", grid_of(tmp_path / "exact", {"a": PRIVACY}), spec(rounds=2), sites=["a"])
    claims = [one.history[-1]["privacy"]["a"]["epsilon_total"] for one in (final, exact)]
    assert claims[0] == claims[1]
