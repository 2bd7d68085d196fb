"""Strategies and conditions through the whole simulation: personal models in the metrics, sites away, slow sites."""

from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.config.compose import compose
from fed_diffmic.errors import ConfigError, RoundError, UsageError
from fed_diffmic.files import load_tensors
from fed_diffmic.inference.finished import final_predictor
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.release.final import load_final
from simulations.run import simulate
from simulations.sites import build_sites
from tests.simulations.test_run import SMALL

TWO_STAGES = [*SMALL, "stages.guidance.rounds=1", "stages.diffusion.rounds=1", "run.bootstrap=0"]
LINEAR = [
    "stages=linear",
    "stages.plain.rounds=4",
    "dataset.modality=fundus",
    "dataset.phantom_images=64",
    "model=tiny",
    "model.image_side=32",
    "partition.min_images=4",
    "run.bootstrap=0",
    "run.device=cpu",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strategies")


def run(folder: Path, name: str, *more: str):
    settings = [f"dataset.cache_dir={folder / 'cache'}", f"dataset.root={folder / 'phantoms'}", *more]
    config = compose(None, [*settings, f"run.dir={folder / name}"])
    return config, simulate(config)


@pytest.mark.parametrize(
    ("strategy", "keep", "more"),
    [
        ("fedbn", ("guidance", "diffusion"), ()),
        ("ditto", ("guidance", "diffusion"), ()),
        ("fedper", ("guidance",), ("model.denoiser=classifier",)),
    ],
)
def test_each_site_is_judged_by_its_own_model_in_both_stages(folder, strategy, keep, more):
    config, summary = run(folder, strategy, *TWO_STAGES, f"strategy={strategy}", *more)
    final = load_final(folder / strategy)
    assert {stage: sorted(digests) for stage, digests in final.personal.items()} == {
        stage: ["site-1", "site-2"] for stage in keep
    }
    sites = build_sites(config, folder / "again").sites
    predictions = load_tensors(folder / strategy / "predictions.safetensors")
    shared = Predictor(final.spec, "diffusion", final.states["diffusion"], final.calibration["diffusion"])
    for site, data in sites.items():
        parts = folder / strategy / "personal"
        own = load_tensors(parts / "diffusion" / f"{site}.safetensors") if "diffusion" in keep else {}
        guidance = load_tensors(parts / "guidance" / f"{site}.safetensors")
        state = {**final.states["diffusion"], **{f"guidance.{n}": v for n, v in guidance.items()}, **own}
        by_hand = Predictor(final.spec, "diffusion", state, final.calibration["diffusion"]).predict(data.test)
        measured = predictions[f"federated|{site}|probabilities"]
        np.testing.assert_array_equal(measured, by_hand.probabilities.astype(np.float32))
        assert not np.array_equal(measured, shared.predict(data.test).probabilities.astype(np.float32))
    assert summary["strategy"] == strategy
    own = final_predictor(folder / strategy, "site-1").predict(sites["site-1"].test).probabilities
    np.testing.assert_array_equal(own.astype(np.float32), predictions["federated|site-1|probabilities"])
    with pytest.raises(UsageError, match="no own part of that site"):
        final_predictor(folder / strategy, "site-9")
    if strategy != "ditto":  # nobody trained what is the sites' own
        with pytest.raises(UsageError, match="--site NAME, one of site-1, site-2"):
            final_predictor(folder / strategy)
    else:
        final_predictor(folder / strategy)
    assert not list((folder / strategy / "sites").rglob("states/*/*"))  # what sites kept to resume is gone


def test_the_pooled_baseline_of_a_personal_strategy_is_one_model_at_every_place(folder):
    _, summary = run(folder, "pooled", *LINEAR, "partition.sites=2", "strategy=ditto", "baselines=[local,pooled]")
    rows = {"federated/site-1", "federated/site-2", "local/site-1", "local/site-2", "pooled"}
    assert set(summary["matrix"]) == rows
    assert all(set(row) == {"site-1", "site-2", "all"} for row in summary["matrix"].values())
    for site in ("site-1", "site-2"):
        cell = summary["matrix"][f"federated/{site}"][site]
        assert cell["auroc_macro"]["value"] == summary["sites"][site]["test"]["auroc_macro"]["value"]
    final = load_final(folder / "pooled" / "arms" / "pooled")
    assert not final.personal


def test_a_site_alone_ends_with_the_same_weights_whatever_it_is_held_against(folder):
    """Those of one site's FedAvg that keeps its moments, bit for bit: plain training, in rounds."""
    longer = [*LINEAR, "stages.plain.select=loss", "stages.plain.lr=0.05"]  # the last round is the best
    run(folder, "one", *longer, "partition.sites=1", "strategy.keep_optimizer_state=true", "baselines=[local]")
    [alone] = (folder / "one/arms").iterdir()
    assert_same(load_final(folder / "one").states, load_final(alone).states)
    ways = {
        "fedavg": (),
        "feddyn": ("strategy=feddyn",),
        "fedprox": ("strategy=fedprox", "strategy.mu=1", "strategy.codec=int8"),
        "masked": ("strategy.secure_aggregation=masked",),
    }
    for name, more in ways.items():
        run(folder, f"alone-{name}", *longer, "partition.sites=3", "baselines=[local,pooled]", *more)
    for arm in (path.name for path in (folder / "alone-fedavg/arms").iterdir()):
        first, *others = (load_final(folder / f"alone-{name}/arms/{arm}").states for name in ways)
        for states in others:
            assert_same(first, states)
    assert load_final(folder / "alone-feddyn").digests != load_final(folder / "alone-fedavg").digests


def test_one_model_of_all_images_sees_as_many_as_all_sites(folder):
    run(folder, "counted", *LINEAR, "partition.sites=2", "stages.plain.steps=3", "baselines=[local,pooled]")
    arms = {name: load_final(folder / "counted" / "arms" / name) for name in ("pooled",)}
    arms["federated"] = load_final(folder / "counted")
    steps = {arm: [m["steps"] for m in final.history[0]["sites"].values()] for arm, final in arms.items()}
    assert steps == {"pooled": [6.0], "federated": [3.0, 3.0]}


def assert_same(first, second):
    assert set(first) == set(second) and first
    for stage, state in first.items():
        assert set(state) == set(second[stage])
        for name, value in state.items():
            np.testing.assert_array_equal(value, second[stage][name])


def test_a_linear_classifier_on_frozen_features_alone(folder):
    _, summary = run(folder, "linear", *LINEAR, "partition.sites=2", "baselines=[local,pooled]")
    assert summary["final_stage"] == "plain" and set(summary["stages"]) == {"plain"}
    assert set(summary["baselines"]) == {"local", "pooled"}
    final = load_final(folder / "linear")
    tensors = sum(v.nbytes for n, v in final.states["plain"].items() if n.startswith("classifier"))
    rounds, sites = 4, 2
    whole = sum(v.nbytes for v in final.states["plain"].values())
    # To each site everything once; each round the update up and the new weights down; for the calibration those of the
    # best round, unless it was the last one: then the site has them.
    again = summary["stages"]["plain"]["best_round"] < rounds
    assert summary["bytes_sent"] == sites * ((2 * rounds + again) * tensors + whole)


def test_sites_that_are_away_are_missed_and_the_rest_goes_on(folder):
    more = ["partition.sites=3", "conditions.absent=[site-2:2-3]", "run.quorum=0.5"]
    _, summary = run(folder, "away", *LINEAR, *more)
    missing = [sorted(row["missing"]) for row in summary["stages"]["plain"]["history"]]
    assert missing == [[], ["site-2"], ["site-2"], []]
    trained = [sorted(row["sites"]) for row in summary["stages"]["plain"]["history"]]
    assert trained[1] == ["site-1", "site-3"] and trained[3] == ["site-1", "site-2", "site-3"]
    with pytest.raises(RoundError, match="site-2: the site takes no part in this round"):
        run(folder, "too-few", *LINEAR, *more[:2], "run.quorum=0.9")


def test_dropouts_are_drawn_by_the_seed(folder):
    more = ["partition.sites=4", "conditions=unreliable", "conditions.dropout=0.25", "run.quorum=0.25"]
    (_, one), (_, two), (_, other) = (
        run(folder, f"dropout-{n}", *LINEAR, *more, f"seed={seed}") for n, seed in enumerate((1, 1, 2))
    )
    missing = [[sorted(row["missing"]) for row in s["stages"]["plain"]["history"]] for s in (one, two, other)]
    assert missing[0] == missing[1] != missing[2] and any(missing[0]) and one["digests"] == two["digests"]


def test_a_slow_site_does_its_share_of_the_steps(folder):
    more = ["partition.sites=2", "conditions.slow=[site-2:4]", "stages.plain.steps=8", "strategy=fednova"]
    _, summary = run(folder, "slow", *LINEAR, *more)
    for row in summary["stages"]["plain"]["history"]:
        assert {site: metrics["steps"] for site, metrics in row["sites"].items()} == {"site-1": 8.0, "site-2": 2.0}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("conditions.absent=[site-1]", "SITE:ROUND"),
        ("conditions.absent=[site-1:3-2]", "SITE:FIRST-LAST"),
        ("conditions.slow=[site-1:0.5]", "a number from 1"),
        ("conditions.dropout=0.5", "run.quorum"),
    ],
)
def test_conditions_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        compose(None, [setting])


def test_conditions_of_sites_that_are_not_there(folder):
    with pytest.raises(ConfigError, match="one of the sites site-1, site-2"):
        run(folder, "nobody", *LINEAR, "partition.sites=2", "conditions.slow=[site-9:2]")
    assert not (folder / "nobody" / "config.yaml").exists()


@pytest.mark.parametrize("strategy", ["ditto", "qfedavg"])
def test_what_reads_images_outside_the_private_update_is_refused_with_privacy(strategy):
    private = ["privacy=dp_sgd", "model.norm=group", "model.encoder_norm=group"]
    with pytest.raises(ConfigError, match="another strategy with privacy=dp_sgd"):
        compose(None, [*private, f"strategy={strategy}"])
