"""What each group can be chosen to be, as Hydra composes it: the files of ``configs/``, and what code declares.

An option is composed against the dataclass of its group, so that a misspelt key or a wrong type in one is refused. For
the groups whose choices are code (:data:`fed_diffmic.config.owners.KINDS`) the option is made of what the chosen one
declares beside its code.
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
    tree = yaml.safe_load((FOLDER / f"{base.name}.yaml").read_text(encoding="utf-8"))
    chosen: dict[str, str] = {k: v for item in tree["defaults"] if isinstance(item, dict) for k, v in item.items()}
    return chosen[chosen[group][2:-1]] if chosen[group].startswith("${") else chosen[group]


@functools.lru_cache(maxsize=64)
def composed(folder: Path, base: str, chosen: tuple[tuple[str, str], ...]) -> Any:
    """What Hydra makes of the shipped files, as our own classes (a composition takes 0.2 s).

    Whoever gets it lays values over a copy (:func:`laid_over`): its lists and mappings are everybody's.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    _register_schemas()
    _register_owners(base, dict(chosen))
    hydra = GlobalHydra.instance()
    outer = hydra.hydra  # a program around us may use Hydra too: it gets its state back
    hydra.clear()
    try:
        with initialize_config_dir(str(folder), job_name="fed_diffmic", version_base="1.3"):
            made = hydra_compose(base, overrides=[f"{group}={option}" for group, option in chosen])
    finally:
        GlobalHydra.instance().hydra = outer
    return OmegaConf.to_object(made)


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


def _register_schemas() -> None:
    """Offer Hydra each dataclass as ``schema/GROUP``.

    The nodes are made writable first: Hydra cannot choose a group inside a read-only (frozen) one.
    ``to_object`` still gives the frozen class back.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    schemas: dict[str, type] = {}
    for base in (SIMULATE, SERVER, CLIENT):
        hints = typing.get_type_hints(base.config_type)
        schemas |= {base.name: base.config_type, **{group: hints[group] for group in base.groups}}
    kept = store.repo.get("fed_diffmic_schema", {})
    if all(f"{name}.yaml" in kept for name in schemas):  # half of a composition's time; they are the same every time
        return
    for name, config_type in schemas.items():
        node = OmegaConf.structured(config_type)
        _make_writable(node)
        store.store(group="fed_diffmic_schema", name=name, node=node, provider="fed_diffmic")


def _register_owners(base: str, chosen: Mapping[str, str]) -> None:
    """Offer Hydra, as ``GROUP/NAME``, what each choice sets: what its own options and its registration say."""
    from hydra.core.config_store import ConfigStore

    kinds = _BASES[base]
    hints = typing.get_type_hints(kinds.config_type)
    for group in [group for group in kinds.groups if group in KINDS]:
        name = chosen.get(group) or default_option(kinds, group)
        values = find(KINDS[group], name).flat_values(hints[group])
        node = {"defaults": [f"/fed_diffmic_schema/{group}@_here_", "_self_"], **values}
        ConfigStore.instance().store(group=group, name=name, node=node, provider="fed_diffmic")


def _make_writable(node: Any) -> None:
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _make_writable(child)
