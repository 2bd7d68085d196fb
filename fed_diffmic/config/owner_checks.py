"""Options that are not the chosen one's, and what an algorithm must be for noise of the coordinator's to cover it."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from fed_diffmic.config.features import Trained
from fed_diffmic.config.owners import ALGORITHMS, PARTITIONERS, Kind, builtin, builtins
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import ConfigError


def check_strategy(config: Trained) -> None:
    """A Flower strategy without its class, a class without the strategy that takes it, or somebody else's options.

    Nothing of an installed package is imported: the options of an algorithm of one are checked when it is built.
    """
    strategy = config.strategy
    check_once("strategy.personal", strategy.personal)
    if isinstance(config, SimulateConfig) and "mixture" in strategy.personal and "local" not in config.baselines:
        raise ConfigError(
            "strategy.personal",
            strategy.personal,
            "finetune and head without baselines=[local]",
            "A mixture is of the global model and the one that each site trained alone.",
        )
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
                "Leave strategy.options out; a Flower strategy's arguments go with strategy=flower and its class_path.",
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
    if isinstance(config, SimulateConfig):
        for name in ("lr_scales", "optimizers"):
            grid = getattr(config.run, name)
            if len(grid) > 1:
                raise ConfigError(f"run.{name}", grid, f"at most one with {key}", "Each trial is a release of its own.")
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


def check_secure_aggregation(config: Trained) -> None:
    """Masked updates with settings that must see single ones."""
    strategy, key = config.strategy, "strategy.secure_aggregation"
    if strategy.secure_aggregation == "off":
        return
    owner = builtin(ALGORITHMS, strategy.name)  # of an installed package nothing is imported: nobody vouches for it
    if owner is None or not _takes_sums_alone(owner.made):
        fitting = [name for name, other in builtins(ALGORITHMS).items() if _takes_sums_alone(other.made)]
        raise ConfigError(
            "strategy.name",
            strategy.name,
            f"one of {', '.join(fitting)} with {key}=masked",
            "The others must see each site's update, and masked the coordinator sees their sum only.",
        )
    if strategy.client_noise_multiplier:
        raise ConfigError(
            "strategy.client_noise_multiplier",
            strategy.client_noise_multiplier,
            f"0 with {key}=masked",
            "The coordinator would have to clip updates that it does not see.",
        )


def check_exchanges(config: SimulateConfig | ServerConfig) -> None:
    """One message a round where a round is several requests to a site."""
    strategy, shares = config.strategy, "fedsgd"
    if config.run.exchanges != "one" or (strategy.secure_aggregation == "off" and strategy.name != shares):
        return
    beside = f"strategy={shares}" if strategy.name == shares else "strategy.secure_aggregation=masked"
    raise ConfigError(
        "run.exchanges", "one", f"auto or two with {beside}", "A round is several requests to a site there."
    )


def _takes_sums_alone(algorithm: Any) -> bool:
    """Whether its server half takes sums, and to make them nothing has to be said of a single site."""
    if algorithm is None:
        return False
    needs = algorithm.needs_initial_loss or (algorithm.needs_steps and not algorithm.divides)
    return bool(algorithm.gradient_sums or (algorithm.needs == "sums" and not needs))


def check_partition(config: SimulateConfig) -> None:
    """A saved partition without its file, or a file without it; folds that are none."""
    cfg = config.partition
    if cfg.name == "saved" and cfg.file is None:
        raise ConfigError("partition.file", "null", "the partition.csv of an earlier run")
    check_exclusive(cfg, PARTITIONERS)
    if cfg.folds == 1:
        raise ConfigError("partition.folds", 1, "0, or 2 and more", "One fold would leave nothing to train on.")
    if cfg.fold >= max(cfg.folds, 1):
        raise ConfigError("partition.fold", cfg.fold, f"0 to {max(cfg.folds, 1) - 1} with partition.folds={cfg.folds}")
    if cfg.folds and cfg.name == "saved":
        raise ConfigError("partition.folds", cfg.folds, "0 with partition=saved, which holds its own splits")


def check_external(config: SimulateConfig) -> None:
    """Names of tables from elsewhere that could not stand in files and tables of metrics."""
    for name in config.external:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name):
            raise ConfigError(f"external.{name}", name, "a name of up to 40 letters, digits, '.', '_' and '-'")


def check_once(key: str, values: list[str] | list[float]) -> None:
    """Refuse a list that names something twice."""
    if len(set(values)) != len(values):
        raise ConfigError(key, values, "each value once")
