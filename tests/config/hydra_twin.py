"""The slow twin of :func:`fed_diffmic.config.choices.composed`: what Hydra makes of the same files and options."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fed_diffmic.config.choices import Base, default_option
from fed_diffmic.config.owners import KINDS
from fed_diffmic.config.plugins import find

SCHEMAS = "fed_diffmic_schema"


def composed_by_hydra(folder: Path, base: Base, chosen: Mapping[str, str]) -> Any:
    """A configuration with some options chosen; every value is checked against its dataclass by OmegaConf."""
    hints = typing.get_type_hints(base.config_type)
    store = ConfigStore.instance()
    for name, kind in {base.name: base.config_type, **{group: hints[group] for group in base.groups}}.items():
        node = OmegaConf.structured(kind)
        make_writable(node)  # Hydra cannot choose a group inside a read-only (frozen) one
        store.store(group=SCHEMAS, name=name, node=node, provider="fed_diffmic")
    for group in [group for group in base.groups if group in KINDS]:
        name = chosen.get(group) or default_option(base, group)
        values = find(KINDS[group], name).flat_values(hints[group])
        made = {"defaults": [f"/{SCHEMAS}/{group}@_here_", "_self_"], **values}
        store.store(group=group, name=name, node=made, provider="fed_diffmic")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), job_name="fed_diffmic", version_base="1.3"):
        tree = compose(base.name, overrides=[f"{group}={option}" for group, option in chosen.items()])
    return OmegaConf.to_object(tree)


def make_writable(node: Any) -> None:
    """Lift the read-only flag of a frozen dataclass, at every depth."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            make_writable(child)
