"""Private sites in a federation: what they spend, what they say, where they stop."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from client import privacy as client_privacy
from client import site as client_site
from client.site import Protection
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import ConfigError, RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.claims import claim_text, parse_claim
from fed_diffmic.privacy.account import FOLDER
from fed_diffmic.privacy.accounting import epsilon
from fed_diffmic.privacy.continuity import ANCHOR
from fed_diffmic.training import stages
from tests.client.private import COUNTS, PRIVACY, ROUND, PrivateNet, account, federate, grid_of, spec
from tests.toy import CLASSES, Events, toy_grid


@pytest.fixture(autouse=True)
def _network(monkeypatch):
    monkeypatch.setattr(stages, "build_plain", lambda *_: PrivateNet())
    stages._KEPT.clear()
    yield
    stages._KEPT.clear()


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
