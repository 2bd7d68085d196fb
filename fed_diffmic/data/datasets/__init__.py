"""The published layouts, one file each. To add one: a file in this folder with a registered ``read``.

A reader turns a folder into a :class:`~fed_diffmic.data.manifest.Manifest` and collects what is wrong in
:class:`~fed_diffmic.data.findings.Findings`. It leaves out rows it has reported, so that the rest can still be
checked; whoever called it raises. It decodes no image.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import ConfigError

Reader = Callable[[DatasetConfig, Findings], Manifest]

_READERS: dict[str, Reader] = {}


def register_dataset(name: str) -> Callable[[Reader], Reader]:
    """Register a reader under the name that ``dataset=NAME`` selects.

    Raises:
        ValueError: the name is taken.
    """

    def register(reader: Reader) -> Reader:
        if name in _READERS:
            raise ValueError(f"two data sets are registered as {name!r}")
        _READERS[name] = reader
        return reader

    return register


def get_dataset(name: str) -> Reader:
    """The reader of a layout.

    Raises:
        ConfigError: no such layout.
    """
    if name not in dataset_names():
        raise ConfigError("dataset", name, ", ".join(dataset_names()))
    return _READERS[name]


def dataset_names() -> tuple[str, ...]:
    """Every registered layout, sorted (imports the files of this folder)."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return tuple(sorted(_READERS))
