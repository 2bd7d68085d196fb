"""What a site checks of a spec that came: the ranges and combinations that the coordinator checks of its configuration.

The groups ``model``, ``stages`` and ``strategy`` are checked when they are built; here is the rest.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from fed_diffmic.config.checks import (
    DEVICE,
    check_dataset,
    check_model,
)
from fed_diffmic.config.features import check_features
from fed_diffmic.config.fields import check_value
from fed_diffmic.config.owner_checks import check_client_level, check_secure_aggregation, check_strategy
from fed_diffmic.config.run_names import RUN_NAMES, is_run_name
from fed_diffmic.config.shared_noise import check_shared_noise
from fed_diffmic.config.simulation import DatasetConfig, RunConfig, SimulateConfig
from fed_diffmic.config.stages import check_crossfit, check_stage_values
from fed_diffmic.errors import ConfigError

if TYPE_CHECKING:
    from fed_diffmic.config.spec import RunSpec

LONGEST_NAME = 512
MOST_CLASSES = 10_000


def check_spec(spec: RunSpec) -> None:
    """Refuse a spec that no configuration of a coordinator gives.

    Raises:
        ConfigError: names the key, its value, and what is allowed.
    """
    for key, value in (("run_id", spec.run_id), ("arm", spec.arm)):
        if not 0 < len(value) <= LONGEST_NAME:
            raise ConfigError(f"spec.{key}", f"({len(value)} characters)", f"1 to {LONGEST_NAME} characters")
    if not is_run_name(spec.run_id):
        raise ConfigError("spec.run_id", repr(spec.run_id), RUN_NAMES)
    _check_declared(SimulateConfig, "seed", spec.seed, "spec.seed")
    _check_declared(RunConfig, "threads_per_site", spec.threads, "spec.threads")
    _check_declared(RunConfig, "precision", spec.precision, "spec.precision")
    if not DEVICE.fullmatch(spec.device):
        raise ConfigError("spec.device", spec.device[:LONGEST_NAME], "auto, cpu, cuda, cuda:N, mps")
    if spec.task not in ("multiclass", "ordinal", "multilabel"):
        raise ConfigError("spec.task", spec.task[:LONGEST_NAME], "multiclass, ordinal, multilabel")
    if len(spec.classes) > MOST_CLASSES or any(not 0 < len(name) <= LONGEST_NAME for name in spec.classes):
        raise ConfigError(
            "spec.classes",
            f"({len(spec.classes)} names)",
            f"at most {MOST_CLASSES} names of 1 to {LONGEST_NAME} characters",
        )
    named = spec.class_names
    if named and (
        len(named) != len(spec.classes) or any(len(n) > LONGEST_NAME or not (n + "x").isprintable() for n in named)
    ):
        raise ConfigError(
            "spec.class_names",
            f"({len(named)} names)",
            f"none, or one for each class of at most {LONGEST_NAME} printable characters",
        )
    data = DatasetConfig(
        name="table",
        task=spec.task,
        classes=list(spec.classes),
        mean=list(spec.mean),
        std=list(spec.std),
        modality=spec.modality,
    )
    check_dataset(data, "spec")
    check_model(spec)
    check_stage_values(spec)
    check_crossfit(spec.stages)
    check_strategy(spec)
    check_client_level(spec)
    check_secure_aggregation(spec)
    check_shared_noise(spec)
    check_features(spec, plain=False)  # whether plain is trained, and on what, is asked when its module is built


def _check_declared(group: type, name: str, value: object, key: str) -> None:
    declared = next(f for f in fields(group) if f.name == name)
    check_value(declared, value, key)
