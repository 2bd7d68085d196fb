"""Whether a site's rules agree to a study by themselves: its model is allowed and every value lies in its range."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

import configs
from fed_diffmic.config.policy_study import PATHS, StudyRules, is_number, known_keys, range_for
from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.payload import text_digest
from fed_diffmic.exchange.policy import Names
from fed_diffmic.exchange.study import canonical

_FOLDER = Path(next(iter(configs.__path__))) / "model"
BACKBONES = tuple(f.name for f in fields(ModelConfig) if f.name.endswith("_backbone"))


def breaches(spec: RunSpec, stages: Sequence[str], rules: StudyRules) -> list[str]:
    """What of a study the rules do not allow, a sentence each; empty: they agree to it.

    Args:
        spec: the study's.
        stages: those that it trains; another stage's numbers are never used.
        rules: of the site.
    """
    found = [] if model_allowed(spec.model, rules) else [_model_sentence(spec.model)]
    ranges = rules.flat_ranges
    for key, value in values(spec, stages):
        allowed = range_for(ranges, key)
        if allowed is not None and not _inside(key, value, allowed):
            shown = ", ".join(str(word) for word in allowed)
            words = f"from {allowed[0]:g} to {allowed[1]:g}" if is_number(known_keys()[key]) else f"one of {shown}"
            found.append(f"{key} is {_shown(value)}; policy.study.ranges allows {words}")
    return found


def values(spec: RunSpec, stages: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Every value of a study that a range can be given for, by its key."""
    flat: dict[str, Any] = {"seed": spec.seed, "threads": spec.threads, "mean": spec.mean, "std": spec.std}
    flat["precision"] = spec.precision
    flat |= {f"model.{name}": value for name, value in asdict(spec.model).items()}
    for stage in stages:
        flat |= {f"stages.{stage}.{name}": value for name, value in asdict(spec.stage(stage)).items()}
    flat |= {f"strategy.{name}": value for name, value in asdict(spec.strategy).items()}
    known = known_keys()
    return ((key, value) for key, value in flat.items() if key in known)


def model_digest(model: ModelConfig) -> str:
    """SHA-256 of a group ``model``, its name and every number that builds the network; paths are left out."""
    return text_digest(canonical({name: value for name, value in asdict(model).items() if name not in PATHS}))


def model_allowed(model: ModelConfig, rules: StudyRules) -> bool:
    """Whether the rules name the model: as a preset to the last number, by its digest, or by its encoders."""
    digest = model_digest(model)
    if digest in rules.models or (model.name in rules.models and digest == preset_digests().get(model.name)):
        return True
    return bool(rules.backbones) and not Names(rules.backbones).lacks(getattr(model, name) for name in BACKBONES)


@functools.cache
def preset_digests() -> dict[str, str]:
    """Digest of each preset that this program ships: a ``tiny`` with another encoder is not ``tiny``."""
    found = {}
    for path in sorted(_FOLDER.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = ModelConfig(**{name: value for name, value in values.items() if name != "defaults"})
        found[model.name] = model_digest(model)
    return found


def _model_sentence(model: ModelConfig) -> str:
    encoders = ", ".join(sorted({getattr(model, name) for name in BACKBONES}))
    return (
        f"the model (digest {model_digest(model)}, encoders {encoders}) is none of policy.study.models as this program "
        "ships it, and policy.study.backbones does not name its encoders"
    )


def _inside(key: str, value: Any, allowed: list[Any]) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    if is_number(known_keys()[key]):
        return all(item is None or allowed[0] <= item <= allowed[1] for item in items)
    return all(item in allowed for item in items)


def _shown(value: Any) -> str:
    return json.dumps(value)
