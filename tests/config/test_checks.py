from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fed_diffmic.config import checks as config_checks
from fed_diffmic.config.checks import check_same_run, check_start, differences
from fed_diffmic.config.compose import compose
from fed_diffmic.config.folders import RUN_MARKS, holds_run, with_run_dir
from fed_diffmic.errors import ConfigError, UsageError

PRIVATE = ["privacy=dp_sgd", "model.norm=group", "model.encoder_norm=group"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["dataset.no_finding=true"], "dataset.no_finding"),
        (["dataset=table", "dataset.split=published"], "dataset.split"),
        (["dataset.mean=[0.5]"], "dataset.mean"),
        (["dataset.std=[0.5,0.5,0.5,0.5]"], "dataset.std"),
        (["dataset.classes=[a,a]"], "dataset.classes"),
        (["dataset.classes=[a]"], "dataset.classes"),
        (["dataset.classes=[]", "dataset.task=multilabel"], "dataset.classes"),
        (["model.timesteps=50", "model.sampling_steps=51"], "model.sampling_steps"),
        (["model.crop=65", "model.image_side=64"], "model.crop"),
        (["stages.guidance.rounds=null"], "stages.guidance.rounds"),
        (["stages.diffusion.rounds=null"], "stages.diffusion.rounds"),
        (["stages.guidance.rounds=0"], "stages.guidance.rounds"),
        (["stages.guidance.rounds=0", "stages.diffusion.rounds=0"], "stages.diffusion.rounds"),
        (["partition.folds=1"], "partition.folds"),
        (["partition.folds=3", "partition.fold=3"], "partition.fold"),
        (["partition.fold=1"], "partition.fold"),
        (["partition=saved", "partition.file=x.csv", "partition.folds=3"], "partition.folds"),
        (["external.a|b=x.csv"], "external.a|b"),
        (["strategy.personal=[mixture]"], "strategy.personal"),
        (["strategy.personal=[finetune,finetune]"], "strategy.personal"),
        (["run.local_optimizers=[sgd,sgd]"], "run.local_optimizers"),
        (["run.optimizers=[adamw,adamw]"], "run.optimizers"),
        ([*PRIVATE, "privacy.epsilon=8", "run.optimizers=[sgd,adamw]"], "run.optimizers"),
        (
            [*PRIVATE, "privacy.epsilon=8", "run.local_optimizers=[sgd,adamw]"],
            "run.local_optimizers",
        ),
        (["strategy=flower"], "strategy.class_path"),
        (["strategy.class_path=a.B"], "strategy.class_path"),
        (["strategy.options.eta=1"], "strategy.options"),
        (["run.device=gpu"], "run.device"),
        (["run.device=cuda:x"], "run.device"),
        (["baselines=[local,local]"], "baselines"),
        (["run.lr_scales=[]"], "run.lr_scales"),
        (["run.lr_scales=[1,1.0]"], "run.lr_scales"),
        ([*PRIVATE, "privacy.weight=0", "privacy.count_noise=0"], "privacy.weight"),
        ([*PRIVATE, "privacy.stages=[]"], "privacy.stages"),
        ([*PRIVATE, "privacy.epsilon=null"], "privacy.budget"),
        ([*PRIVATE, "privacy.epsilon=null", "privacy.budget=3"], "privacy.noise_multiplier"),
        ([*PRIVATE, "model.norm=batch"], "model.norm"),
        ([*PRIVATE, "model.encoder_norm=train"], "model.encoder_norm"),
        ([*PRIVATE, "run.lr_scales=[0.3,1]"], "run.lr_scales"),
    ],
)
def test_values_that_exclude_each_other(overrides, key):
    with pytest.raises(ConfigError) as caught:
        compose(None, overrides)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages.guidance.rounds=0", "stages.guidance.init=g.safetensors"],
        ["stages.diffusion.rounds=0"],
        ["dataset.classes=[a]", "dataset.task=multilabel"],
        ["dataset=chestxray14", "dataset.no_finding=true", "dataset.split=published"],
        ["run.device=cuda:1"],
        [*PRIVATE, "privacy.weight=0", "privacy.count_noise=0", "privacy.nominal_units=100"],
        ["model.crop=64", "model.image_side=64"],
    ],
)
def test_values_that_go_together(overrides):
    assert compose(None, overrides) != compose(None, [])


def test_a_root_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.root=.*nowhere"):
        check_start(compose(None, ["dataset=table", f"dataset.root={tmp_path / 'nowhere'}"]), resume=False)
    with pytest.raises(ConfigError, match=r"dataset\.root=null"):
        check_start(compose(None, ["dataset=ham10000"]), resume=False)
    (tmp_path / "file").touch()
    check_start(compose(None, ["dataset=table", f"dataset.root={tmp_path / 'file'}"]), resume=False)
    for data in ("ham10000", "phantoms"):
        with pytest.raises(ConfigError, match=r"dataset\.root"):
            check_start(compose(None, [f"dataset={data}", f"dataset.root={tmp_path / 'file'}"]), resume=False)
    check_start(compose(None, ["dataset=table", f"dataset.root={tmp_path}"]), resume=False)
    check_start(compose(None, [f"dataset.root={tmp_path / 'drawn here'}"]), resume=False)


@pytest.mark.parametrize("key", ["model.weights", "model.prior_weights", "stages.guidance.init", "stages.plain.init"])
def test_weights_that_do_not_exist(key, tmp_path):
    with pytest.raises(ConfigError) as caught:
        check_start(compose(None, [f"{key}={tmp_path / 'w.safetensors'}"]), resume=False)
    assert caught.value.key == key
    (tmp_path / "w.safetensors").touch()
    check_start(compose(None, [f"{key}={tmp_path / 'w.safetensors'}"]), resume=False)


@pytest.mark.parametrize("mark", RUN_MARKS)
def test_a_folder_that_holds_a_run_is_not_overwritten(mark, tmp_path):
    config = compose(None, [f"run.dir={tmp_path}"])
    check_start(config, resume=False)
    with pytest.raises(UsageError, match="there is no run"):
        check_start(config, resume=True)
    (tmp_path / mark).touch()
    assert holds_run(tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        check_start(config, resume=False)
    check_start(config, resume=True)


def test_resume_needs_a_folder(tmp_path):
    with pytest.raises(UsageError, match="which run"):
        check_start(compose(None, []), resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a folder, existing or not"):
        check_start(compose(None, [f"run.dir={tmp_path / 'file'}"]), resume=False)


@pytest.mark.parametrize(
    ("override", "extra"),
    [("run.backend=ray", "simulation"), ("run.tracking=tensorboard", "tracking"), ("run.tracking=mlflow", "mlflow")],
)
def test_an_extra_that_is_not_installed(override, extra, monkeypatch):
    monkeypatch.setattr(config_checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"fed-diffmic\[{extra}\]"):
        check_start(compose(None, [override]), resume=False)


def test_a_run_is_continued_only_as_it_was_started():
    config = compose(None, ["run.dir=/a"])
    check_same_run(config, compose(None, ["run.dir=/moved/a", "run.deadline_s=5"]))
    started = rf"stages\.guidance\.lr=0\.5 .* {config.stages.guidance.lr}, with which the run was started"
    with pytest.raises(ConfigError, match=started):
        check_same_run(config, compose(None, ["run.dir=/a", "stages.guidance.lr=0.5"]))
    assert list(differences(config, compose(None, ["seed=3", "run.dir=/a"]))) == [("seed", 0, 3)]


def test_a_run_without_a_folder_gets_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(None, [])
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    folder = Path(with_run_dir(config, now).run.dir)
    assert folder.parent == tmp_path / "runs"
    assert folder.name.startswith("20260102-030405-phantoms-")
    assert with_run_dir(replace(config, seed=1), now).run.dir != str(folder)
    given = compose(None, ["run.dir=/x"])
    assert with_run_dir(given) is given
    assert not folder.exists()


@pytest.mark.parametrize("stage", ["guidance", "diffusion", "plain"])
def test_batch_norm_over_one_image_is_refused(stage):
    with pytest.raises(ConfigError, match=rf"stages\.{stage}\.batch_size") as caught:
        compose(None, ["model.norm=batch", f"stages.{stage}.batch_size=1"])
    assert "model.norm=group" in str(caught.value) + caught.value.remedy
    compose(None, ["model.norm=group", f"stages.{stage}.batch_size=1"])
    compose(None, ["model.norm=batch", f"stages.{stage}.batch_size=2"])


def test_a_run_has_its_name_from_its_folder(tmp_path):
    saved = compose(None, [f"run.dir={tmp_path / 'first'}"])
    with pytest.raises(UsageError, match="started in a folder named first, which is named second now") as caught:
        check_same_run(saved, compose(None, [f"run.dir={tmp_path / 'second'}"]))
    assert "Name the folder first again (it may lie elsewhere)" in caught.value.remedy
    check_same_run(saved, compose(None, [f"run.dir={tmp_path / 'elsewhere' / 'first'}"]))


@pytest.mark.parametrize("key", ["run.dir", "dataset.root", "dataset.cache_dir"])
def test_a_name_that_no_file_system_takes(key, tmp_path):
    with pytest.raises(ConfigError, match="at most 255 bytes") as caught:
        check_start(compose(None, [f"{key}={tmp_path / ('a' * 300)}"]), resume=False)
    assert caught.value.key == key and len(str(caught.value)) < 300
    check_start(compose(None, [f"run.dir={tmp_path / ('a' * 200)}"]), resume=False)
