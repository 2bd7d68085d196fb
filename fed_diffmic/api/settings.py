"""Settings as Python values: the same names, ranges and presets as ``key=value`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_diffmic.config.compose import compose
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import UsageError

Given = SimulateConfig | Mapping[str, Any] | str | Path | None
"""A configuration, settings as a mapping, the path of a YAML file, or none: the defaults."""


def configuration(config: Given, settings: Mapping[str, Any]) -> SimulateConfig:
    """A checked configuration.

    Args:
        config: what to start from.
        settings: laid over it: a group's option (``model="tiny"``), a group's values
            (``model={"name": "tiny", "image_side": 32}``), or single values by dotted key
            (``{"model": "tiny", "model.image_side": 32}``).

    Raises:
        ConfigError, UsageError: as on the command line.
    """
    if isinstance(config, SimulateConfig):
        if settings:
            raise UsageError(
                f"a SimulateConfig and settings beside it: {', '.join(settings)}",
                "Change the configuration (dataclasses.replace), or give a file or a mapping.",
            )
        return config
    if isinstance(config, Mapping):
        return compose(None, overrides(config) + overrides(settings))
    return compose(None if config is None else Path(config), overrides(settings))


def overrides(settings: Mapping[str, Any], above: str = "") -> list[str]:
    """``key=value`` for each value of nested settings."""
    found: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += overrides(value, f"{above}{key}.")
        else:
            found.append(f"{above}{key}={_text(value)}")
    return found


def _text(value: Any) -> str:
    """A value as it is typed: text and paths as they are, the rest as JSON."""
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy's numbers as Python's, everything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
