"""Group ``policy.study``: who agrees to the study of a run, and what a study may ask for without a person's word."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from fed_diffmic.config.fields import Checked, allowed_text, option
from fed_diffmic.config.simulation import (
    DatasetConfig,
    ModelConfig,
    RunConfig,
    SimulateConfig,
    StageConfig,
    StrategyConfig,
)
from fed_diffmic.config.text import flattened
from fed_diffmic.errors import ConfigError

STAGE_PREFIX = "stages."
PATHS = ("weights", "prior_weights", "pretrained", "init")  # the coordinator's own; they never cross


@dataclass(frozen=True)
class StudyRules(Checked):
    """When the site agrees to the study of a run: everything that the run will ask, fixed before it asks."""

    approval: str = option(
        "person",
        "person: the site does nothing in a run before `fed-diffmic policy approve`; rule: a study with an allowed "
        "model and every value in its range is agreed to by itself",
        choices=("person", "rule"),
    )
    models: list[str] = option(
        doc="rule: models allowed: a preset (compact, paper, tiny) exactly as this program ships it, or the digest of "
        "a group `model` (`fed-diffmic policy explain --run` says it)",
        factory=list,
    )
    backbones: list[str] = option(
        doc="rule: a model that is none of `models` is allowed if all its encoders are named here (timm names, * for "
        "any text) and its numbers are in their ranges",
        factory=list,
    )
    ranges: dict[str, Any] = option(
        doc="rule: the lowest and highest number, or the words, that a study may name, by key: seed, threads, "
        "precision, mean, std, model.KEY, strategy.KEY, stages.KEY (every stage) or stages.STAGE.KEY. A key that is "
        "not here: what the program itself allows. Entries are added to those of the preset",
        factory=dict,
    )

    @property
    def flat_ranges(self) -> dict[str, list[Any]]:
        """``ranges`` by dotted key, however it was nested."""
        return flattened(self.ranges)


def known_keys() -> dict[str, Field[Any]]:
    """Every key that a study may be judged by, with the field that declares it."""
    single = {"seed": (SimulateConfig, "seed"), "threads": (RunConfig, "threads_per_site")}
    single["precision"] = (RunConfig, "precision")
    single |= {name: (DatasetConfig, name) for name in ("mean", "std")}
    found = {key: next(f for f in fields(kind) if f.name == name) for key, (kind, name) in single.items()}
    groups: list[tuple[str, type]] = [
        ("model.", ModelConfig),
        ("strategy.", StrategyConfig),
        (STAGE_PREFIX, StageConfig),
    ]
    groups += [(f"{STAGE_PREFIX}{stage}.", StageConfig) for stage in ("guidance", "diffusion", "plain")]
    for prefix, kind in groups:
        found |= {f"{prefix}{f.name}": f for f in fields(kind) if f.name not in (*PATHS, "options", "class_path")}
    return found


def check_study_rules(rules: StudyRules) -> None:
    """Refuse ranges of what no study holds, or that are none.

    Raises:
        ConfigError: names the key.
    """
    known = known_keys()
    for key, value in rules.flat_ranges.items():
        name = f"policy.study.ranges.{key}"
        if key not in known:
            raise ConfigError(
                name, str(value), "ranges of seed, threads, precision, mean, std, model.*, stages.*, strategy.*"
            )
        if is_number(known[key]):
            if not _is_range(value):
                raise ConfigError(name, str(value), "[lowest, highest], two numbers")
        elif not isinstance(value, list) or not all(isinstance(word, (str, bool)) for word in value):
            raise ConfigError(name, str(value), f"a list of those allowed; the key is {allowed_text(known[key])}")


def is_number(field: Field[Any]) -> bool:
    """Whether a field holds a number, or numbers."""
    return str(field.type).split(" |")[0] in ("int", "float", "list[float]", "list[int]")


def range_for(ranges: Mapping[str, list[Any]], key: str) -> list[Any] | None:
    """The range that holds for a key of a study: its own, or that of every stage; none: there is none."""
    if key in ranges:
        return ranges[key]
    parts = key.split(".")
    common = f"{STAGE_PREFIX}{parts[-1]}"
    return ranges.get(common) if len(parts) == 3 and key.startswith(STAGE_PREFIX) else None


def _is_range(value: object) -> typing.TypeGuard[list[float]]:
    numbers = isinstance(value, list) and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in value)
    return numbers and isinstance(value, list) and len(value) == 2 and value[0] <= value[1]
