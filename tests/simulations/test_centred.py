"""Centred features through a whole run: both stages, with and without privacy, and the model that comes out."""

import numpy as np
import pytest

from fed_diffmic.config.compose import compose
from fed_diffmic.errors import ConfigError
from fed_diffmic.files import load_tensors
from fed_diffmic.inference.finished import final_predictor
from fed_diffmic.inference.images import image_files
from fed_diffmic.inference.predictions import predict_files
from fed_diffmic.release.final import load_final
from fed_diffmic.reporting.events import read_events
from simulations.run import simulate
from tests.simulations.test_run import SMALL

CENTRED = [
    "model.features=centred",
    "model.norm=group",
    "model.encoder_norm=group",
    "model.denoiser=residual",
    "stages.guidance.encoders=frozen",
    "stages.diffusion.encoders=frozen",
]
PRIVATE = ["privacy=dp_sgd", "privacy.delta=1e-3", "privacy.weight=0", "privacy.logical_batch=8", "privacy.test_seed=1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"dataset.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.mark.parametrize("private", [False, True])
def test_a_run_finds_the_centre_in_its_first_round_and_keeps_it(tmp_path, cache, private):
    given = [*SMALL, *CENTRED, "stages.diffusion.rounds=1", *(PRIVATE if private else ["baselines=[local]"])]
    config = compose(None, [*given, cache, f"run.dir={tmp_path / 'run'}"])
    summary = simulate(config)
    assert summary["status"] == "done" and 0 <= summary["mean"]["test"]["auroc_macro"]["value"] <= 1
    final = load_final(tmp_path / "run")
    guidance = final.states["guidance"]
    for name in ("global_centre.mean", "local_centre.mean"):
        assert np.abs(guidance[name]).max() > 0.01
        np.testing.assert_array_equal(guidance[name], final.states["diffusion"][f"guidance.{name}"])
    rows = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "round_done"]
    losses = {(row["stage"], row["round"]): row["loss"] for row in rows if row["arm"] == "federated"}
    assert losses["guidance", 1] is None
    assert (losses["guidance", 2] is None) == private
    images = sorted((tmp_path / "run" / "phantoms" / "train_images").iterdir())[:3]
    assert len(predict_files(final_predictor(tmp_path / "run"), image_files(images))) == 3


def test_with_shared_noise_too_and_under_masks_bit_for_bit(tmp_path, cache):
    given = [
        *SMALL, *CENTRED, cache, "partition.sites=3", "dataset.phantom_images=72", "stages.plain.rounds=0",
        "stages.guidance.steps=1", "stages.diffusion.steps=1", "stages.diffusion.rounds=1",
        "strategy=fedsgd", "strategy.sample_rate=0.5", "strategy.clip_norm=1", "privacy=dp_sgd",
        "privacy.mechanism=distributed", "privacy.honest_sites=2", "privacy.delta=1e-3",
        "privacy.epsilon=200", "privacy.budget_alone=1000", "privacy.test_seed=1", "privacy.count_noise=0",
    ]  # fmt: skip
    found = []
    for masked in ("off", "masked"):
        folder = tmp_path / masked
        simulate(compose(None, [*given, f"run.dir={folder}", f"strategy.secure_aggregation={masked}"]))
        found.append(load_final(folder).states["guidance"])
        rows = [e for e in read_events(folder / "events.jsonl") if e["kind"] == "round_done"]
        assert [len(row["privacy"]) for row in rows] == [3, 3, 3]  # the round that finds the mean is charged as any
    plain, masked = found
    assert all(np.array_equal(value, masked[name]) for name, value in plain.items())
    for name in ("global_centre.mean", "local_centre.mean"):
        # A half of 36 training images is drawn; the features' root mean square is 1.
        assert 0.1 < np.sqrt(np.square(plain[name]).mean()) < 2


def test_a_started_stage_keeps_the_centre_that_it_is_given(tmp_path, cache):
    given = [*SMALL, *CENTRED, cache, "stages.diffusion.rounds=0"]
    simulate(compose(None, [*given, f"run.dir={tmp_path / 'one'}"]))
    file = tmp_path / "one" / "final" / "guidance.safetensors"
    simulate(compose(None, [*given, f"run.dir={tmp_path / 'two'}", f"stages.guidance.init={file}"]))
    before, after = load_tensors(file), load_tensors(tmp_path / "two" / "final" / "guidance.safetensors")
    np.testing.assert_array_equal(before["global_centre.mean"], after["global_centre.mean"])
    assert np.abs(before["saliency.weight"] - after["saliency.weight"]).max() > 0


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["stages.guidance.encoders=train"], r"stages.guidance.encoders=train .*frozen"),
        (["baselines=[plain]"], r"stages.plain.encoders=train .*frozen"),
        (["strategy.client_noise_multiplier=1", "strategy.weighting=equal"], r"model.features=centred .*raw"),
    ],
)
def test_what_cannot_be_centred_is_refused_before_anything_starts(more, match):
    with pytest.raises(ConfigError, match=match):
        compose(None, [*SMALL, *CENTRED, *more])
