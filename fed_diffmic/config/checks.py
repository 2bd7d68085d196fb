"""What no single field can say: values that exclude each other, and what the machine must have.

:func:`check_consistency` looks at the configuration alone; :func:`check_start` at files, folders and installed
extras, and is called before any work starts.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fed_diffmic.config.features import Trained, check_features
from fed_diffmic.config.folders import check_folders, renamed
from fed_diffmic.config.groups import layout_options
from fed_diffmic.config.owner_checks import (
    check_client_level,
    check_exchanges,
    check_exclusive,
    check_external,
    check_once,
    check_partition,
    check_secure_aggregation,
    check_strategy,
)
from fed_diffmic.config.owners import ALGORITHMS, DATASETS
from fed_diffmic.config.plugins import find
from fed_diffmic.config.precision import check_private
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.shared_noise import check_shared_noise, check_shared_privacy
from fed_diffmic.config.simulation import DatasetConfig, SimulateConfig, StagesConfig
from fed_diffmic.config.stages import check_crossfit, check_stage_values
from fed_diffmic.errors import ConfigError, UsageError

MAY_CHANGE = ("run.dir", "run.deadline_s", "run.exchanges", "run.tracking", "dataset.cache_dir")
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def check_consistency(config: SimulateConfig) -> None:
    """Refuse values that are each allowed but not together.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed beside the others.
    """
    check_dataset(config.dataset, "dataset")
    check_model(config)
    check_stages(config)
    check_strategy(config)
    check_client_level(config)
    check_secure_aggregation(config)
    check_exchanges(config)
    check_conditions(config)
    check_partition(config)
    check_external(config)
    if not DEVICE.fullmatch(config.run.device):
        raise ConfigError(
            "run.device",
            config.run.device,
            "auto, cpu, cuda, cuda:N, mps",
            "Virtual sites take turns on one device; several that share a step are a real site's (site.device).",
        )
    check_once("baselines", config.baselines)
    check_privacy(config)
    check_shared_noise(config)
    check_once("run.lr_scales", config.run.lr_scales)
    check_once("run.optimizers", config.run.optimizers)
    check_once("run.local_optimizers", config.run.local_optimizers)
    if not config.run.lr_scales:
        raise ConfigError("run.lr_scales", "[]", "at least one number, for example [1.0]")
    if config.run.examples and not layout_options(config.dataset.name).public:
        raise ConfigError(
            "run.examples",
            config.run.examples,
            f"0 or null with dataset={config.dataset.name}",
            "A report is passed on; it shows images of drawn or published data only.",
        )


def check_dataset(data: DatasetConfig, group: str) -> None:
    """Values of a data set's group (called ``group`` in messages) that exclude each other."""
    check_exclusive(data, DATASETS)
    if data.split == "published" and not layout_options(data.name).published_split:
        raise ConfigError(
            "dataset.split",
            "published",
            f"none with dataset={data.name}; it has no published split",
            "A table's own column `split` is always kept.",
        )
    for key, values in ((f"{group}.mean", data.mean), (f"{group}.std", data.std)):
        if len(values) != 3:
            raise ConfigError(key, values, "three numbers, for red, green and blue")
    if data.classes is not None:
        check_once(f"{group}.classes", data.classes)
        fewest = 1 if data.task == "multilabel" else 2
        if len(data.classes) < fewest:
            raise ConfigError(f"{group}.classes", data.classes, f"at least {fewest} names")


def check_privacy_group(privacy: PrivacyConfig) -> None:
    """A privacy group that says too little."""
    if privacy.name == "none":
        return
    if privacy.budget is None and privacy.epsilon is None:
        raise ConfigError("privacy.budget", "null", "a number, or privacy.epsilon")
    check_shared_privacy(privacy)  # first: it allows no noise_multiplier, which the next would ask for
    if privacy.noise_multiplier is None and privacy.epsilon is None:
        raise ConfigError("privacy.noise_multiplier", "null", "a number, or privacy.epsilon to compute it from")
    if not privacy.stages:
        raise ConfigError("privacy.stages", "[]", "at least one stage with privacy=dp_sgd")
    check_once("privacy.stages", privacy.stages)
    if privacy.weight == 0 and privacy.nominal_units == 0 and privacy.count_noise == 0:
        raise ConfigError(
            "privacy.weight", 0, "at least 1, or 0 beside privacy.nominal_units or privacy.count_noise above 0"
        )


def check_privacy(config: SimulateConfig) -> None:
    """Settings of a run that a private site could not honour."""
    check_privacy_group(config.privacy)
    if config.privacy.name == "none":
        return
    check_private(config.run.precision)
    for key in ("lr_scales", "optimizers", "local_optimizers"):
        grid = getattr(config.run, key)
        if len(grid) > 1:
            raise ConfigError(
                f"run.{key}",
                grid,
                "at most one with privacy=dp_sgd",
                "A search reads the private data each time; try rates on public images.",
            )
    made = find(ALGORITHMS, config.strategy.name).made
    if made is not None and not made.private:
        raise ConfigError(
            "strategy.name",
            config.strategy.name,
            "another strategy with privacy=dp_sgd",
            "Its sites read their images outside the private update.",
        )
    if config.model.norm != "group" or config.model.encoder_norm == "train":
        key = "model.norm" if config.model.norm != "group" else "model.encoder_norm"
        raise ConfigError(
            key,
            config.model.norm if key == "model.norm" else "train",
            "group" if key == "model.norm" else "frozen or group, with privacy=dp_sgd",
            "Batch norm mixes the images of a batch: no gradient would be one unit's own.",
        )


def check_model(config: Trained) -> None:
    """Values of the model's group that exclude each other."""
    model = config.model
    if model.sampling_steps > model.timesteps:
        raise ConfigError(
            "model.sampling_steps", model.sampling_steps, f"at most model.timesteps, which is {model.timesteps}"
        )
    if model.crop > model.image_side:
        raise ConfigError("model.crop", model.crop, f"at most model.image_side, which is {model.image_side}")


def check_epochs_count(given: Mapping[str, Set[str]], stages: StagesConfig | None) -> None:
    """Refuse passes that somebody asked for where the chosen preset counts steps, so that they would change nothing.

    Args:
        given: for each stage the keys that were written by hand; a saved configuration writes both.
        stages: as composed; none: this configuration has no stages.
    """
    for name, keys in given.items():
        stage = getattr(stages, name)
        if "epochs" in keys and "steps" not in keys and stage.steps:
            raise ConfigError(
                f"stages.{name}.epochs",
                f"{stage.epochs:g}",
                f"nothing beside stages.{name}.steps, which the chosen preset sets to {stage.steps}",
                f"To count passes: stages.{name}.steps=0 too; to keep counting steps: another stages.{name}.steps.",
            )


def check_stages(config: SimulateConfig | ServerConfig) -> None:
    """Stages that could not train."""
    stages = config.stages
    check_stage_values(config)
    plain_only = isinstance(config, SimulateConfig) and not any(
        getattr(stages, name).rounds or getattr(stages, name).init for name in ("guidance", "diffusion")
    )
    check_features(config, plain=plain_only or (isinstance(config, SimulateConfig) and "plain" in config.baselines))
    if plain_only and stages.plain.rounds:
        return  # the federation trains the plain classifier alone
    if not stages.guidance.rounds and not stages.diffusion.rounds:
        raise ConfigError(
            "stages.diffusion.rounds", 0, "at least 1 unless stages.guidance.rounds is", "Nothing would train."
        )
    if not stages.guidance.rounds and stages.guidance.init is None:
        raise ConfigError(
            "stages.guidance.rounds",
            0,
            "at least 1, or 0 together with stages.guidance.init=FILE",
            "The diffusion stage conditions on a trained guidance network; untrained, it is noise.",
        )


def check_conditions(config: SimulateConfig) -> None:
    """Conditions that cannot be read, or that no round of the run would survive."""
    conditions = config.conditions
    for key in ("absent", "slow"):
        for entry in getattr(conditions, key):
            try:
                parse_absence(entry) if key == "absent" else parse_slowness(entry)
            except ValueError as error:
                raise ConfigError(f"conditions.{key}", entry, str(error)) from error
    if (conditions.dropout or conditions.absent) and config.run.quorum == 1.0:
        raise ConfigError(
            "run.quorum",
            1.0,
            "less than 1 with conditions.dropout or conditions.absent",
            "With a quorum of 1 the first site that is away ends the run.",
        )


def parse_absence(entry: str) -> tuple[str, int, int]:
    """Site, first and last round of ``SITE:ROUND`` or ``SITE:FIRST-LAST``.

    Raises:
        ValueError: what is allowed, in words.
    """
    found = re.fullmatch(r"(.+):([0-9]{1,6})(?:-([0-9]{1,6}))?", entry)
    if found is None or not 1 <= int(found[2]) <= int(found[3] or found[2]):
        raise ValueError("SITE:ROUND or SITE:FIRST-LAST, rounds from 1, for example site-2:3-5")
    return found[1], int(found[2]), int(found[3] or found[2])


def parse_slowness(entry: str) -> tuple[str, float]:
    """Site and how many times slower it is, of ``SITE:TIMES``.

    Raises:
        ValueError: what is allowed, in words.
    """
    site, _, times = entry.rpartition(":")
    if not site or re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", times) is None or float(times) < 1:
        raise ValueError("SITE:TIMES, a number from 1, for example site-1:4")
    return site, float(times)


def check_same_run(saved: SimulateConfig, config: SimulateConfig) -> None:
    """Refuse to continue a run under another configuration: the result would be neither run's.

    Raises:
        ConfigError: names the first key that differs and what the run was started with.
        UsageError: the run's folder has another name.
    """
    for key, before, now in differences(saved, config):
        if key not in MAY_CHANGE:
            raise ConfigError(
                key,
                now,
                f"{before}, with which the run was started",
                "Leave the key out to continue that run, or start another one in another run.dir.",
            )
    before, now = Path(saved.run.dir or "").name, Path(config.run.dir or "").name
    if before and before != now:
        raise UsageError(*renamed(before, now))


def differences(first: Any, second: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key and both values, for each key in which two configurations differ."""
    for f in fields(first):
        a, b = getattr(first, f.name), getattr(second, f.name)
        if is_dataclass(a):
            yield from differences(a, b, f"{prefix}{f.name}.")
        elif a != b:
            yield f"{prefix}{f.name}", a, b


def check_start(config: SimulateConfig, *, resume: bool) -> None:
    """Refuse to start what could not end well on this machine: missing files, a folder in use, extras.

    Raises:
        ConfigError: names the key, its value and what is allowed.
        UsageError: ``--resume`` with nothing to resume.
    """
    check_folders(config, resume)
    check_crossfit(config.stages)
    paths = {
        "model.weights": config.model.weights,
        "model.prior_weights": config.model.prior_weights,
        "partition.file": config.partition.file,
        **{f"external.{name}": path for name, path in config.external.items()},
        **{f"stages.{name}.init": getattr(config.stages, name).init for name in ("guidance", "diffusion", "plain")},
    }
    for key, path in paths.items():
        if path is not None and not Path(path).is_file():
            raise ConfigError(
                key, path, "an existing file", "Check the path; a relative one starts at the current folder."
            )
    extras = (
        ("run.backend", config.run.backend, "ray", "ray", "simulation"),
        ("run.tracking", config.run.tracking, "tensorboard", "tensorboard", "tracking"),
        ("run.tracking", config.run.tracking, "mlflow", "mlflow", "mlflow"),
    )
    for key, value, needs, module, extra in extras:
        if value == needs and importlib.util.find_spec(module) is None:
            raise ConfigError(
                key, value, f"this only where {module} is installed", f"Install it: pip install 'fed-diffmic[{extra}]'."
            )
