"""Options that are not the chosen one's, and what an algorithm must be for noise of the coordinator's to cover it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fed_diffmic.config.features import Trained
from fed_diffmic.config.owners import ALGORITHMS, Kind, builtin, builtins
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import ConfigError


def check_strategy(config: Trained) -> None:
    """A Flower strategy without its class, a class without the strategy that takes it, or somebody else's options.

    Nothing of an installed package is imported: the options of an algorithm of one are checked when it is built.
    """
    strategy = config.strategy
    if strategy.name == "flower" and strategy.class_path is None:
        raise ConfigError(
            "strategy.class_path",
            "null",
            "an import path, for example flwr.serverapp.strategy.FedMedian, with strategy=flower",
        )
    check_exclusive(strategy, ALGORITHMS)
    owner = builtin(ALGORITHMS, strategy.name) if strategy.options else None
    if owner is not None and not owner.options.free:
        if not owner.own_values(type(strategy)):
            raise ConfigError(
                "strategy.options",
                strategy.options,
                f"nothing with strategy={strategy.name}",
                "Choose strategy=flower.",
            )
        owner.options.of(strategy)


def check_exclusive(config: Any, kind: Kind) -> None:
    """Refuse what belongs to another choice of the group alone, rather than pass it over.

    Raises:
        ConfigError: names the key and whose it is.
    """
    for f in fields(config):
        owners, value = f.metadata.get("owners"), getattr(config, f.name)
        if owners and config.name not in owners and value != f.default and f.metadata.get("exclusive"):
            idle = "nothing" if f.default is None else str(f.default).lower()
            shown = str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(
                f"{kind.group}.{f.name}",
                shown,
                f"{idle} unless {kind.group}={' or '.join(owners)}",
                f"Choose {kind.group}={owners[0]}, or leave {kind.group}.{f.name} out.",
            )


def check_client_level(config: Trained) -> None:
    """Client-level noise with settings that it could not honour."""
    strategy, key = config.strategy, "strategy.client_noise_multiplier"
    if strategy.client_noise_multiplier == 0:
        return
    owner = builtin(ALGORITHMS, strategy.name)  # nobody vouches for what a package does with the noised average
    if owner is None or not (owner.made is None or owner.made.mean_of_updates):
        fitting = [n for n, o in builtins(ALGORITHMS).items() if o.made is None or o.made.mean_of_updates]
        raise ConfigError(
            "strategy.name",
            strategy.name,
            f"one of {', '.join(fitting)} with {key}",
            "The others need more of the sites than an average of updates.",
        )
    if strategy.weighting != "equal":
        raise ConfigError("strategy.weighting", strategy.weighting, f"equal with {key}")
    if isinstance(config, SimulateConfig) and len(config.run.lr_scales) > 1:
        raise ConfigError(
            "run.lr_scales", config.run.lr_scales, f"one number with {key}", "Each trial is a release of its own."
        )
    for name, value, good in (
        ("model.norm", config.model.norm, ("group",)),
        ("model.encoder_norm", config.model.encoder_norm, ("frozen", "group")),
    ):
        if value not in good:
            raise ConfigError(
                name,
                value,
                f"{' or '.join(good)} with {key}",
                "The running statistics of batch norm would leave without noise.",
            )
