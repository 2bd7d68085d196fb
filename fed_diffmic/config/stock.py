"""Architectures that come with the program, which need no look before a start: tests look at each of them.

Whether a network can exist is asked of torch and of the library of backbones (:mod:`fed_diffmic.models.checks`), which
take seconds to load. A coordinator whose model is a preset need not wait for them before it listens.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import yaml

from fed_diffmic.config.choices import FOLDER
from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ConfigError

STOCK = ("tiny", "compact", "paper")


def is_stock(cfg: ModelConfig) -> bool:
    """Whether a model is a preset but for what no check of its architecture looks at."""
    if cfg.name not in STOCK:
        return False
    preset = _preset(cfg.name)
    free = {"weights": cfg.weights, "pretrained": cfg.pretrained, "latent": cfg.latent, "attention": cfg.attention}
    return replace(preset, sampling_starts=cfg.sampling_starts, **free) == cfg  # type: ignore[arg-type]


@functools.cache
def _preset(name: str) -> ModelConfig:
    said = yaml.safe_load((FOLDER / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    return ModelConfig(**{key: value for key, value in said.items() if key != "defaults"})


def check_weights_files(cfg: ModelConfig) -> None:
    """Refuse weights that are not there.

    Raises:
        ConfigError: names the key.
    """
    for key in ("weights", "prior_weights"):
        path = getattr(cfg, key)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"model.{key}", path, "the path of an existing weights file (safetensors or state dict)")
