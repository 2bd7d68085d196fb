"""What each group can be chosen to be: the files of ``configs/``, and what code declares.

The files are written as Hydra composes them. An option is read against the dataclass of its group, so that a misspelt
key or a wrong type in one is refused. For the groups whose choices are code (:data:`fed_diffmic.config.owners.KINDS`)
the option is made of what the chosen one declares beside its code.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import configs
from fed_diffmic.config.checks import check_consistency
from fed_diffmic.config.network_checks import check_server_consistency, check_site_consistency
from fed_diffmic.config.owners import KINDS
from fed_diffmic.config.parse import parse_dataclass
from fed_diffmic.config.plugins import find, names
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.site import SiteConfig

FOLDER = Path(next(iter(configs.__path__))).absolute()
GROUPS = tuple(f.name for f in fields(SimulateConfig) if is_dataclass(typing.get_type_hints(SimulateConfig)[f.name]))


@dataclass(frozen=True)
class Base:
    """One of the configuration files that a command reads.

    Attributes:
        name: of the shipped default in ``configs/``, and of its schema.
        config_type: the dataclass that declares it.
        groups: its groups that have options to choose from.
        check: refuses values that exclude each other.
    """

    name: str
    config_type: type
    groups: tuple[str, ...]
    check: Callable[[Any], None]


SIMULATE = Base("simulate", SimulateConfig, GROUPS, check_consistency)
SERVER = Base("server", ServerConfig, ("model", "stages", "strategy"), check_server_consistency)
CLIENT = Base("client", SiteConfig, ("dataset", "policy", "privacy"), check_site_consistency)
_BASES = {base.name: base for base in (SIMULATE, SERVER, CLIENT)}


def group_options(group: str) -> list[str]:
    """The options of a group, sorted: those that travel with the package, and those that installed packages offer."""
    if group in KINDS:
        return names(KINDS[group])
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def default_option(base: Base, group: str) -> str:
    """The option that the shipped default of a configuration starts a group from."""
    chosen = _defaults(base)
    return chosen[_followed(base, group) or group]


def _followed(base: Base, group: str) -> str | None:
    """The group whose option a group's default is, as stages follow the model; none: it has one of its own."""
    said = _defaults(base)[group]
    return said[2:-1] if said.startswith("${") else None


@functools.cache
def _defaults(base: Base) -> Mapping[str, str]:
    tree = yaml.safe_load((FOLDER / f"{base.name}.yaml").read_text(encoding="utf-8"))
    return {k: v for item in tree["defaults"] if isinstance(item, dict) for k, v in item.items()}


@functools.lru_cache(maxsize=64)
def composed(folder: Path, base: str, chosen: tuple[tuple[str, str], ...]) -> Any:
    """A shipped configuration with the options that were chosen, as our own classes: what Hydra makes of it.

    A library that composes takes a tenth of a start to do what a dozen lines do; tests hold these to it.

    Args:
        folder: of the shipped files.
        base: name of the configuration.
        chosen: group and option, sorted; of a group that is not named, the shipped default's.

    Whoever gets it lays values over a copy (:func:`laid_over`): its lists and mappings are everybody's.
    """
    kinds, options = _BASES[base], dict(chosen)
    tree = _read(folder / f"{base}.yaml")
    hints = typing.get_type_hints(kinds.config_type)
    for group in kinds.groups:
        name = options.get(group) or _default(kinds, group, options)
        if group in KINDS:
            values: Mapping[str, Any] = find(KINDS[group], name).flat_values(hints[group])
        else:
            values = _read(folder / group / f"{name}.yaml")
        tree[group] = {**values, **tree.get(group, {})}
    return parse_dataclass(kinds.config_type, tree, base)


def _default(base: Base, group: str, chosen: Mapping[str, str]) -> str:
    """The option of a group that nobody chose; one that follows another group's option follows the chosen one."""
    followed = _followed(base, group)
    return chosen[followed] if followed in chosen else default_option(base, group)


def _read(file: Path) -> dict[str, Any]:
    """A shipped file without its list of what Hydra would put together."""
    tree: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return {key: value for key, value in tree.items() if key != "defaults"}


def laid_over(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a configuration that shares nothing that can be changed with it.

    OmegaConf's own merge takes thirty times as long, and what it would check was checked when the values were read.

    Args:
        config: a (nested) dataclass.
        values: what stands in the place of its own values, of the declared types; nested as it is.

    Raises:
        ConfigError: a value is out of range.
    """
    found = {}
    for f in fields(config):
        own = getattr(config, f.name)
        if is_dataclass(own):
            found[f.name] = laid_over(own, values.get(f.name, {}))
        elif f.name in values or isinstance(own, (list, dict)):
            found[f.name] = _own(values.get(f.name, own))
    return replace(config, **found)


def _own(value: Any) -> Any:
    """The same lists and mappings anew; sequences of any kind are lists, as they are when read from a file."""
    if isinstance(value, (list, tuple)):
        return [_own(item) for item in value]
    return {name: _own(item) for name, item in value.items()} if isinstance(value, dict) else value
