"""Values that one stage can have and another cannot; asked of a configuration and of what a site is sent."""

from __future__ import annotations

from fed_diffmic.config.features import Trained
from fed_diffmic.config.simulation import StagesConfig
from fed_diffmic.errors import ConfigError

TWO_STAGES = ("guidance", "diffusion")


def check_stage_values(config: Trained) -> None:
    """Refuse a stage that could not train, whatever the others are.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed.
    """
    stages = config.stages
    for name in ("guidance", "diffusion", "plain"):
        if config.model.norm == "batch" and getattr(stages, name).batch_size == 1:
            remedy = "Batch norm over one image has no variance; or choose model.norm=group."
            raise ConfigError(f"stages.{name}.batch_size", 1, "at least 2 with model.norm=batch", remedy)
    for name in ("guidance", "diffusion"):
        if getattr(stages, name).rounds is None:
            raise ConfigError(
                f"stages.{name}.rounds", "null", "a whole number >= 0; only stages.plain.rounds may be null"
            )
    for name in ("guidance", "plain"):
        if getattr(stages, name).blend:
            raise ConfigError(
                f"stages.{name}.blend", "true", "false: only stage diffusion has a guidance network to blend with"
            )


def trained_stages(stages: StagesConfig) -> tuple[str, ...]:
    """The stages that a configuration trains, in order; the plain classifier where it trains neither of the two.

    A stage is trained where it has rounds, and taken as given where it has a file.
    """
    chosen = (name for name in TWO_STAGES if getattr(stages, name).rounds != 0 or getattr(stages, name).init)
    return tuple(chosen) or ("plain",)
