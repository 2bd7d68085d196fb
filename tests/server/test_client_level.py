"""Client-level noise: what it adds, what it counts, what it refuses, and a run with it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.algorithms.base import SiteUpdate
from fed_diffmic.config.compose import compose
from fed_diffmic.config.simulation import ModelConfig, StrategyConfig
from fed_diffmic.errors import ConfigError, ModelFileError
from fed_diffmic.files import load_tensors, read_json
from fed_diffmic.privacy.accounting import ORDERS
from fed_diffmic.privacy.randomness import Randomness
from server.checkpoints import CheckpointStore
from server.client_level import FILE, ClientLevel, clip_factor
from simulations.run import simulate
from tests import toy
from tests.undrawn import draw_once, undraw

NOISY = StrategyConfig(weighting="equal", client_clip_norm=0.5, client_noise_multiplier=2.0, client_delta=1e-3)
KINDS = {"a": "parameter", "b": "parameter"}


def updates(count: int = 4, size: int = 3) -> tuple[dict[str, np.ndarray], list[SiteUpdate]]:
    rng = np.random.default_rng(1)
    current = {"a": rng.normal(size=(2, size)).astype(np.float32), "b": rng.normal(size=size).astype(np.float32)}
    made = []
    for k in range(count):
        change = {name: (0.02 * 4**k * rng.normal(size=v.shape)).astype(np.float32) for name, v in current.items()}
        made.append(
            SiteUpdate(f"site-{k}", {n: current[n] + change[n] for n in current}, 10 + k, {"algorithm/x": change["a"]})
        )
    return current, made


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(1e-3, 1e3))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_update_is_longer_than_the_norm_and_shorter_ones_stay(values: list[float], norm: float) -> None:
    change = {"a": np.array(values), "b": np.array(values[:1])}
    factor = clip_factor(change, norm)
    before = math.sqrt(sum(float((v**2).sum()) for v in change.values()))
    assert factor * before <= norm * (1 + 1e-12)
    assert factor == 1.0 if before <= norm else factor < 1.0


def test_every_site_is_replaced_by_the_noised_mean_of_clipped_updates(tmp_path: Path) -> None:
    current, sent = updates()
    level = ClientLevel(NOISY, tmp_path, Randomness(5))
    seen = level.protect(current, KINDS, sent[::-1], stage="guidance", round_index=1, rounds_before=0)
    stream = Randomness(5)
    for name in sorted(KINDS):
        mean = np.zeros(current[name].shape)
        for update in sent:
            change = {n: update.tensors[n].astype(np.float64) - current[n] for n in KINDS}
            length = math.sqrt(sum(float((v**2).sum()) for v in change.values()))
            mean += change[name] * min(1.0, 0.5 / length) / 4
        noise = stream.normal(current[name].size).numpy().reshape(current[name].shape)
        wanted = (current[name] + mean + 2.0 * 0.5 / 4 * noise).astype(np.float32)
        assert all(np.array_equal(update.tensors[name], wanted) for update in seen)
    lengths = [np.linalg.norm(np.concatenate([(u.tensors[n] - current[n]).ravel() for n in KINDS])) for u in sent]
    assert min(lengths) < 0.5 < max(lengths)  # one was clipped, one was not
    assert [(u.num_examples, u.algorithm_tensors) for u in seen] == [(1, {})] * 4


def test_the_noise_has_the_stated_deviation_and_is_new_each_time(tmp_path: Path) -> None:
    current, sent = updates(size=40_000)
    still = [replace(update, tensors=current) for update in sent]
    level = ClientLevel(NOISY, tmp_path)
    first, second = (level.protect(current, KINDS, still, stage="g", round_index=r, rounds_before=0)[0] for r in (1, 2))
    for update in (first, second):
        noise = np.concatenate([(update.tensors[n] - current[n]).ravel() for n in KINDS])
        assert noise.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.01) and abs(noise.mean()) < 0.005
    assert not np.array_equal(first.tensors["a"], second.tensors["a"])


def test_epsilon_is_that_of_gaussian_releases(tmp_path: Path) -> None:
    """Renyi divergence of order a of n Gaussian releases: n a / (2 z^2); conversion of Balle et al. 2020."""
    current, sent = updates()
    level, delta, spent = ClientLevel(NOISY, tmp_path), 1e-3, []
    for n in range(1, 8):
        level.protect(current, KINDS, sent, stage="guidance", round_index=n, rounds_before=n - 1)
        facts = level.facts()
        wanted = min(
            n * a / (2 * 2.0**2) + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in ORDERS
        )
        assert facts["releases"] == n and facts["epsilon"] == pytest.approx(max(0.0, wanted), rel=1e-9)
        spent.append(facts["epsilon"])
    assert spent == sorted(spent) and spent[-1] > 2 * spent[0]
    assert ClientLevel(replace(NOISY, client_noise_multiplier=0.0), tmp_path).facts() == {}


def test_statistics_that_noise_does_not_cover_are_refused_before_anything_is_counted(tmp_path: Path) -> None:
    current, sent = updates()
    with pytest.raises(ConfigError, match=r"model\.norm"):
        ClientLevel(NOISY, tmp_path).protect(
            current, {**KINDS, "b": "buffer"}, sent, stage="guidance", round_index=1, rounds_before=0
        )
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", [None, '{"format": 1, "releases": []}', '{"format": 1}', "[]"])
def test_a_record_that_is_missing_or_shorter_stops_the_run(tmp_path: Path, content: str | None) -> None:
    current, sent = updates()
    if content is not None:
        (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ModelFileError, match="noised releases"):
        ClientLevel(NOISY, tmp_path).protect(current, KINDS, sent, stage="guidance", round_index=3, rounds_before=2)


def test_a_round_that_is_computed_again_is_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("fed_diffmic.training.stages._statistics", lambda module: {})  # the toy's norm stays as it is
    monkeypatch.setattr("tests.toy.ToyNet.train", lambda self, mode=True: self)
    grid, _ = toy.toy_grid(tmp_path)
    model = ModelConfig(image_side=32, norm="group", encoder_norm="frozen")
    spec = replace(toy.toy_spec(rounds=3, strategy=NOISY), model=model)
    given: dict[str, Any] = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 5.0}

    class Stop(Exception):
        pass

    def killed(*_: object) -> None:
        raise Stop

    store = CheckpointStore(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("server.aggregation.check_aggregate", killed)  # after the noise, before the checkpoint
        with pytest.raises(Stop):
            toy.federate(grid, spec, store, toy.Events([]), **given)
    assert read_json(tmp_path / "run" / FILE)["releases"] == [["guidance", 1]]
    final = toy.federate(grid, spec, CheckpointStore(tmp_path / "run"), toy.Events([]), **given)
    assert [row["client_level"]["releases"] for row in final.history] == [2, 3, 4]


def settings_of(folder: Path, *more: str) -> Any:
    given = [
        "dataset.modality=fundus", "dataset.phantom_images=64", "model=tiny", "model.image_side=32",
        "model.regions=2", "partition.sites=2", "partition.min_images=4", "stages.guidance.rounds=1",
        "stages.diffusion.rounds=1", "stages.guidance.epochs=1", "stages.diffusion.epochs=1", "run.bootstrap=0",
        "run.device=cpu", "model.norm=group", "model.encoder_norm=group", "strategy.weighting=equal",
        "strategy.client_noise_multiplier=1.0", f"dataset.cache_dir={folder.parent / 'cache'}",
        f"run.dir={folder / 'run'}",
    ]  # fmt: skip
    return compose(None, [*given, *more])


def test_a_run_states_it_apart_and_does_not_repeat_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undraw(monkeypatch)
    draw_once(monkeypatch, tmp_path / "drawn")
    summary = simulate(settings_of(tmp_path / "one", "baselines=[pooled]"))
    (claim, covers) = summary["privacy"]
    assert claim.startswith("The coordinator: (") and "noise on 2 averages" in claim
    assert "not against the coordinator" in covers and "another guarantee than a site's own" in covers
    assert summary["privacy"][0] in (tmp_path / "one" / "run" / "report.html").read_text().replace("&#x27;", "'")
    assert list((tmp_path / "one" / "run").rglob(FILE)) == [tmp_path / "one" / "run" / FILE]  # pooled: no noise
    again = simulate(settings_of(tmp_path / "two"))
    assert again["digests"] != summary["digests"]  # the same seed, other noise
    weights = load_tensors(tmp_path / "two" / "run" / "final" / "diffusion.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values() if value.dtype.kind == "f")


BAD = {
    "strategy=scaffold": r"strategy\.name",
    "strategy=median": r"strategy\.name",
    "strategy.weighting=examples": r"strategy\.weighting",
    "model.norm=batch": r"model\.norm",
    "model.encoder_norm=train": r"model\.encoder_norm",
    "run.lr_scales=[0.5,1]": r"run\.lr_scales",
    "run.optimizers=[adamw,sgd]": r"run\.optimizers",
}


@pytest.mark.parametrize("change", BAD)
def test_settings_that_it_could_not_honour_are_refused(tmp_path: Path, change: str) -> None:
    more = [change, "strategy.weighting=equal"] if change.startswith("strategy=") else [change]
    with pytest.raises(ConfigError, match=BAD[change]):
        settings_of(tmp_path, *more)
