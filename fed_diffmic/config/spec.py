"""What the coordinator tells every site about a run: the part of the configuration that is common.

A :class:`RunSpec` crosses the boundary as JSON. It is parsed strictly: unknown keys, wrong types
and values out of range are refused, and strings are taken literally (no interpolation), because
a site must not trust who sent it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fed_diffmic.config.fields import as_written
from fed_diffmic.config.parse import parse_dataclass
from fed_diffmic.config.simulation import ModelConfig, SimulateConfig, StageConfig, StagesConfig, StrategyConfig
from fed_diffmic.config.spec_checks import check_spec
from fed_diffmic.errors import ConfigError

__all__ = ["STAGES", "RunSpec", "make_spec", "parse_dataclass", "without_paths"]

STAGES = ("guidance", "diffusion", "plain")


@dataclass(frozen=True)
class RunSpec:
    """What all sites of a run have in common.

    Attributes:
        run_id: name of the run (ours, not Flower's).
        arm: which training inside the run: ``federated``, ``local/<site>``, ``pooled``, ...
        seed: seed of initial weights, batches, augmentation and noise.
        task: ``multiclass``, ``ordinal`` or ``multilabel``.
        classes: names in the order of the outputs.
        mean, std: normalisation constants for each channel.
        modality: decides the augmentation.
        model, stages, strategy: groups of the configuration.
        threads: torch threads of a local update.
        device: where a *virtual* site computes; a real site decides for itself.
        class_names: what each class is called for people, in the order of ``classes``; an empty text: as it is. Empty:
            no class has another name.
        precision: what local updates compute in (``run.precision``).
    """

    run_id: str
    arm: str
    seed: int
    task: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    modality: str
    model: ModelConfig
    stages: StagesConfig
    strategy: StrategyConfig
    threads: int = 1
    device: str = "cpu"
    class_names: tuple[str, ...] = field(default=(), metadata={"sparse": True})
    precision: str = field(default="device", metadata={"sparse": True})

    @property
    def plain_names(self) -> dict[str, str]:
        """Names for people, of the classes that have one."""
        return {c: name for c, name in zip(self.classes, self.class_names, strict=False) if name}

    @property
    def num_classes(self) -> int:
        """``C``."""
        return len(self.classes)

    def stage(self, name: str) -> StageConfig:
        """Configuration of a stage, with ``plain.rounds=none`` resolved to the two stages' sum."""
        if name not in STAGES:
            raise ConfigError("stage", name, ", ".join(STAGES))
        chosen: StageConfig = getattr(self.stages, name)
        if chosen.rounds is None:
            total = (self.stages.guidance.rounds or 0) + (self.stages.diffusion.rounds or 0)
            chosen = replace(chosen, rounds=total)
        return chosen

    def to_json(self) -> str:
        """Compact, sorted JSON."""
        return self._text

    @functools.cached_property
    def _text(self) -> str:
        """Written once: it is asked for in every task."""
        return json.dumps(as_written(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> RunSpec:
        """Strict inverse of :meth:`to_json`: whoever reads it checks what the coordinator checks of its configuration.

        Raises:
            ConfigError: not JSON, unknown or missing key, wrong type, value out of range, values that exclude each
                other.
        """
        return _from_json(text)


def make_spec(
    config: SimulateConfig, *, classes: Sequence[str], task: str, run_id: str, arm: str, device: str
) -> RunSpec:
    """The spec of one arm of a simulated run.

    Paths of weights files stay with the coordinator: sites receive the weights themselves.
    """
    return RunSpec(
        run_id=run_id,
        arm=arm,
        seed=config.seed,
        task=task,
        classes=tuple(classes),
        mean=tuple(config.dataset.mean),
        std=tuple(config.dataset.std),
        modality=config.dataset.modality,
        model=config.model,
        stages=config.stages,
        strategy=config.strategy,
        threads=config.run.threads_per_site,
        device=device,
        class_names=_in_order(config.dataset.class_names, classes),
        precision=config.run.precision,
    )


def _in_order(names: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, ...]:
    """Plain names of classes in their order; none: nobody gave any.

    Raises:
        ConfigError: one is of no class, or no text.
    """
    for name, plain in names.items():
        if name not in classes:
            raise ConfigError("dataset.class_names", str(name)[:100], f"one of the classes {', '.join(classes)}"[:500])
        if not isinstance(plain, str):
            raise ConfigError(f"dataset.class_names.{name}", str(plain)[:100], "a text")
    return tuple(str(names.get(name, "")) for name in classes) if names else ()


def without_paths(spec: RunSpec) -> RunSpec:
    """The spec as it leaves the coordinator: its local file names and downloads removed."""
    stages = {name: replace(getattr(spec.stages, name), init=None) for name in STAGES}
    return replace(
        spec,
        model=replace(spec.model, weights=None, prior_weights=None, pretrained=False),
        stages=replace(spec.stages, **stages),
    )


@functools.lru_cache(maxsize=8)
def _from_json(text: str) -> RunSpec:
    """Every task brings the run's specification, the same text each time: what was found good is not read again."""
    try:
        spec: RunSpec = parse_dataclass(RunSpec, json.loads(text, parse_constant=_no_number), "spec")
    except (ValueError, RecursionError) as error:
        raise ConfigError("spec", "(text)", "a JSON object") from error
    check_spec(spec)
    return spec


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
