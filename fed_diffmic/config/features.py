"""When features may be centred (``model.features=centred``); asked of a configuration and of what a site is sent."""

from __future__ import annotations

from typing import Protocol

from fed_diffmic.config.simulation import ModelConfig, StagesConfig, StrategyConfig
from fed_diffmic.errors import ConfigError


class Trained(Protocol):
    """What says how a model is trained: a simulation's or a coordinator's configuration, or the spec that sites get."""

    @property
    def model(self) -> ModelConfig:
        """Group ``model``."""

    @property
    def stages(self) -> StagesConfig:
        """Group ``stages``."""

    @property
    def strategy(self) -> StrategyConfig:
        """Group ``strategy``."""


def check_features(config: Trained, *, plain: bool) -> None:
    """Refuse to centre features of encoders that train, or where noise would not cover their mean.

    Args:
        plain: whether the run trains the plain classifier.

    Raises:
        ConfigError: names the key to change, its value, and what is allowed beside the others.
    """
    if config.model.features == "raw":
        return
    for name, used in (("guidance", bool(config.stages.guidance.rounds)), ("plain", plain)):
        if used:
            check_centred(config.model.features, name, getattr(config.stages, name).encoders == "frozen")
    if config.strategy.client_noise_multiplier:
        raise ConfigError(
            "model.features",
            config.model.features,
            "raw with strategy.client_noise_multiplier",
            "The mean of the features would leave without the coordinator's noise.",
        )


def check_centred(features: str, stage: str, frozen: bool) -> None:
    """Refuse a mean that would be found once of features that go on changing.

    Args:
        features: ``model.features``.
        stage: that finds the mean.
        frozen: whether its encoders are.

    Raises:
        ConfigError: they are not.
    """
    if features == "centred" and not frozen:
        raise ConfigError(
            f"stages.{stage}.encoders",
            "train",
            "frozen with model.features=centred",
            "The mean of the features is found once, in the stage's first round; encoders that train would leave it.",
        )
