"""Private sites in a federation: what they spend, what they say, where they stop."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from client import privacy as client_privacy
from client import site as client_site
from client.site import Protection
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import ConfigError, RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.claims import claim_text, parse_claim
from fed_diffmic.exchange.codecs import build_codec, code
from fed_diffmic.files import tensors_digest
from fed_diffmic.privacy.account import FOLDER, read_account
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.continuity import ANCHOR
from fed_diffmic.training import stages
from server.checkpoints import CheckpointStore
from tests.toy import CLASSES, SIDE, Events, toy_grid, toy_site, toy_spec
from tests.toy import federate as federate_rounds

PRIVACY = PrivacyConfig(
    name="dp_sgd",
    stages=["plain"],
    unit="image",
    noise_multiplier=2.0,
    epsilon=None,
    budget=100.0,
    delta=1e-3,
    logical_batch=4,
    count_noise=5.0,
    weight=3,
)
ROUND = Mechanism(4 / 12, 2.0, 2)
COUNTS = Mechanism(1.0, 5.0, 1)


class PrivateNet(nn.Module):
    """No batch norm: a frozen projection, group norm, a trained head."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3 * SIDE * SIDE, 8).requires_grad_(False)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, images):
        return self.head(self.norm(self.frozen(images.flatten(1))))


@pytest.fixture(autouse=True)
def _network(monkeypatch):
    monkeypatch.setattr(stages, "build_plain", lambda *_: PrivateNet())
    stages._KEPT.clear()
    yield
    stages._KEPT.clear()


def spec(rounds=3, **stage):
    made = toy_spec(rounds=rounds, ema=0.0, steps=2, loss="balanced", **stage)
    return replace(made, arm="federated")


def grid_of(folder, configs):
    """A grid of virtual sites, each with a privacy of its own."""
    grid, source = toy_grid(folder, tuple(configs))
    client_site.register_source(
        source, protection=lambda context: Protection(configs[str(context.node_config["site"])])
    )
    return grid


def federate(folder, grid, made=None, events=None, **settings):
    given = {"stages": ["plain"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 120.0, **settings}
    return federate_rounds(grid, made or spec(), CheckpointStore(folder / "run"), events or Events([]), **given)


def account(folder, name):
    return read_account(folder / "sites" / name / "arms" / "federated")


def test_every_round_and_the_counts_are_in_the_ledger(tmp_path):
    final = federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}))
    for name in ("a", "b"):
        kept = account(tmp_path, name)
        assert [(e.what, e.round, e.settled) for e in kept.entries()] == [
            ("counts", 0, True),
            ("train", 1, True),
            ("train", 2, True),
            ("train", 3, True),
        ]
        assert kept.total() == pytest.approx(epsilon([ROUND] * 3 + [COUNTS], 1e-3))
        claim = final.history[-1]["privacy"][name]
        assert claim["epsilon_total"] == claim["epsilon_run"] == pytest.approx(kept.total())
        assert claim["guarantee"] and claim["unit"] == "image" and claim["outside"] == ["units"]


def test_noise_that_makes_more_of_a_label_than_there_are_units_ends_no_run(tmp_path, monkeypatch):
    """Several labels an image: noised counts may exceed the units, and a share above one is no prior."""

    def several(data):
        parts = {
            split: replace(part, labels=np.eye(len(CLASSES), dtype=np.float32)[part.labels])
            for split in ("train", "val", "test")
            for part in [getattr(data, split)]
        }
        return replace(data, task="multilabel", **parts)

    monkeypatch.setattr(client_privacy, "noised_counts", lambda *_: np.array([1e6, 0.0, 3.0]))
    grid, source = toy_grid(tmp_path, ("a", "b"))
    source.sites = {name: several(data) for name, data in source.sites.items()}
    client_site.register_source(source, protection=lambda _: Protection(PRIVACY))
    final = federate(tmp_path, grid, replace(spec(), task="multilabel"))
    fitted = final.calibration["plain"]
    assert all(0 < share < 1 for share in fitted.prior)
    assert fitted.prior[0] > fitted.prior[2] > fitted.prior[1]
    assert all(np.isfinite(value).all() for value in final.states["plain"].values())


def test_no_loss_no_true_count_and_no_figure_leaves(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(client_privacy, "noised_counts", lambda *_: drawn.append(1) or np.array([3.4, 0.0, 9.6]))
    events = Events([])
    final = federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), events=events)
    assert len(drawn) == 2  # once a run and site, however often it is needed
    for found in events.of("site_found"):
        assert found["images"] == {"train": 13, "val": 0, "test": 0} and found["class_counts"] == [3, 0, 10]
    for row in final.history:
        assert row["loss"] is None and row["val"] == {"a": {}, "b": {}}
        assert all(set(metrics) == {"steps", "num_examples"} for metrics in row["sites"].values())
        assert all(metrics["num_examples"] == 3 for metrics in row["sites"].values())


def test_a_weight_of_0_is_the_public_number_of_units_or_what_the_noised_counts_add_up_to(tmp_path, monkeypatch):
    monkeypatch.setattr(client_privacy, "noised_counts", lambda *_: np.array([3.4, 0.0, 9.6]))
    counted, named = replace(PRIVACY, weight=0), replace(PRIVACY, weight=0, nominal_units=12)
    final = federate(tmp_path, grid_of(tmp_path, {"a": counted, "b": named}), spec(1))
    sites = final.history[0]["sites"]
    assert (sites["a"]["num_examples"], sites["b"]["num_examples"]) == (13, 12)
    monkeypatch.setattr(client_privacy, "noised_counts", lambda *_: np.zeros(3))
    nobody = federate(tmp_path / "two", grid_of(tmp_path / "two", {"a": counted, "b": counted}), spec(1))
    assert nobody.history[0]["sites"]["a"]["num_examples"] == 1


@pytest.mark.parametrize(("change", "task"), [({"count_noise": 0.0}, "multiclass"), ({}, "multilabel")])
def test_a_weight_of_0_that_nothing_public_gives_says_so(change, task):
    site = client_site.Site("a", None, None, "cpu", privacy=replace(PRIVACY, weight=0, **change))
    with pytest.raises(ConfigError, match=r"privacy.weight=0 .*nominal_units"):
        client_privacy.public_weight(site, replace(spec(), task=task))
    public = replace(site, privacy=replace(site.privacy, nominal_units=50))
    assert client_privacy.public_weight(public, replace(spec(), task=task)) == 50


def test_the_last_round_is_kept_where_nobody_says_which_is_best(tmp_path):
    events = Events([])
    final = federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), events=events)
    assert final.history[-1]["best_round"] == 3
    assert [event["chosen"] for event in events.of("stage_done")] == [False]
    assert final.calibration["plain"].n == 0


def test_metrics_over_validation_images_leave_only_where_they_are_listed(tmp_path):
    listed = replace(PRIVACY, validation="listed", nominal_units=12)
    final = federate(tmp_path, grid_of(tmp_path, {"a": listed, "b": listed}))
    assert final.history[0]["val"]["a"]["num_examples"] == 6
    assert final.history[-1]["privacy"]["a"]["outside"] == ["validation"]


def test_a_site_that_runs_out_of_budget_stops_and_the_others_go_on(tmp_path):
    short = replace(PRIVACY, budget=epsilon([ROUND] * 2 + [COUNTS], 1e-3) + 1e-6)
    events = Events([])
    final = federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": short}), events=events, quorum=0.5)
    rows = final.history
    assert [sorted(row["sites"]) for row in rows] == [["a", "b"], ["a", "b"], ["a"]]
    assert failures.FAILURES[failures.BUDGET] in str(rows[2]["missing"]["b"])
    assert account(tmp_path, "b").total() <= short.budget
    assert len(account(tmp_path, "b").entries()) == 3 and len(account(tmp_path, "a").entries()) == 4


def test_with_a_full_quorum_the_run_says_who_ran_out_and_a_grant_lets_it_go_on(tmp_path):
    short = replace(PRIVACY, budget=epsilon([ROUND] * 2 + [COUNTS], 1e-3) + 1e-6)
    sites = {"a": PRIVACY, "b": short}
    with pytest.raises(RoundError, match="privacy budget"):
        federate(tmp_path, grid_of(tmp_path, sites))
    folder = tmp_path / "sites" / "b"
    site = client_site.Site("b", folder, None, "cpu", privacy=short)
    with client_privacy.open_ledger(site, spec()) as ledger:
        ledger.grant(200.0, "the board agreed")
    final = federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": replace(short, budget=None, epsilon=200.0)}))
    assert [sorted(row["sites"]) for row in final.history] == [["a", "b"]] * 3


def test_a_restart_goes_on_with_privacy_and_charges_no_kept_round_again(tmp_path):
    class Stop(Exception):
        pass

    class Stopping(Events):
        def emit(self, kind, **facts):
            super().emit(kind, **facts)
            if kind == "round_done" and facts["round"] == 2:
                raise Stop

    sites = {"a": PRIVACY, "b": PRIVACY}
    with pytest.raises(Stop):
        federate(tmp_path, grid_of(tmp_path, sites), spec(4), Stopping([]))
    stages._KEPT.clear()  # as in a process that was started again
    final = federate(tmp_path, grid_of(tmp_path, sites), spec(4))
    assert [e.round for e in account(tmp_path, "a").entries()] == [0, 1, 2, 3, 4]
    assert final.history[-1]["privacy"]["a"]["epsilon_total"] == pytest.approx(epsilon([ROUND] * 4 + [COUNTS], 1e-3))


def test_a_round_that_is_computed_again_is_charged_again(tmp_path, monkeypatch):
    """The coordinator lost its checkpoint and the site its kept update: the same round, new noise, a new charge."""
    made = spec(1)
    federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), made)
    shutil.rmtree(tmp_path / "run")
    for name in ("a", "b"):
        for part in (tmp_path / "sites" / name).iterdir():
            if part.name not in ("arms", "ledger_key"):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
    federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), made)
    assert [(e.what, e.round) for e in account(tmp_path, "a").entries()] == [("counts", 0), ("train", 1), ("train", 1)]


def test_a_restored_snapshot_of_the_site_is_refused_by_the_coordinators_echo(tmp_path):
    arms = tmp_path / "sites" / "b" / "arms" / "federated"

    class Restoring(Events):
        def emit(self, kind, **facts):
            super().emit(kind, **facts)
            if kind == "round_done" and facts["round"] == 1:
                shutil.copytree(arms, tmp_path / "older")
            if kind == "round_done" and facts["round"] == 2:
                shutil.rmtree(arms)
                shutil.copytree(tmp_path / "older", arms)

    final = federate(tmp_path, grid_of(tmp_path, {"a": PRIVACY, "b": PRIVACY}), spec(3), Restoring([]), quorum=0.5)
    assert [sorted(row["sites"]) for row in final.history] == [["a", "b"], ["a", "b"], ["a"]]
    assert failures.FAILURES[failures.LEDGER] in str(final.history[2]["missing"]["b"])
    assert (arms / FOLDER).exists() and (arms / ANCHOR).exists()


def test_a_stage_that_is_not_protected_is_refused_or_voids_the_claim(tmp_path):
    other = replace(PRIVACY, stages=["guidance"])
    with pytest.raises(RoundError, match="not this stage"):
        federate(tmp_path / "one", grid_of(tmp_path / "one", {"a": other, "b": other}))
    allowed = replace(other, allow_unprotected=True)
    final = federate(tmp_path / "two", grid_of(tmp_path / "two", {"a": allowed, "b": allowed}))
    assert {metrics["num_examples"] for metrics in final.history[-1]["sites"].values()} == {3}  # never the true count
    assert account(tmp_path / "two", "a").total() == math.inf


def test_a_fixed_seed_is_no_guarantee(tmp_path):
    seeded = replace(PRIVACY, test_seed=1)
    runs = [federate(tmp_path / name, grid_of(tmp_path / name, {"a": seeded, "b": seeded})) for name in ("one", "two")]
    assert runs[0].digests == runs[1].digests
    assert not runs[0].history[-1]["privacy"]["a"]["guarantee"]
    real = federate(tmp_path / "three", grid_of(tmp_path / "three", {"a": PRIVACY, "b": PRIVACY}))
    assert real.digests != runs[0].digests


def test_without_privacy_nothing_is_written(tmp_path):
    none = PrivacyConfig()
    final = federate(tmp_path, grid_of(tmp_path, {"a": none, "b": none}))
    assert "privacy" not in final.history[-1] and not list(tmp_path.rglob("ledger*"))


def test_a_claim_crosses_and_anything_else_is_none():
    facts = {"unit": "image", "delta": 1e-5, "epsilon_run": 1.0, "epsilon_total": 2.0, "budget": 8.0}
    text = claim_text(**facts, guarantee=True, outside=["validation", "units"])
    assert parse_claim(text) == {**facts, "guarantee": True, "outside": ["units", "validation"]}
    void = parse_claim(claim_text(**{**facts, "epsilon_total": math.inf}, guarantee=True, outside=[]))
    assert void["epsilon_total"] == -1 and not void["guarantee"]
    for bad in ("", "{", "[]", "{}", text.replace("image", "crop"), text.replace("validation", "nothing"), "[" * 5000):
        assert parse_claim(bad) == {}
    assert parse_claim(text.replace("2.0", "NaN")) == {} and parse_claim(text.replace("2.0", '"2"')) == {}


def sent_updates(monkeypatch):
    """What the sites send, in the order in which they do."""
    sent, real = [], client_privacy.private_update

    def watched(*args, **kwargs):
        at = args[3]
        sent.append((at.site, real(*args, **kwargs)))
        return sent[-1][1]

    monkeypatch.setattr(client_privacy, "private_update", watched)
    return sent


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
