"""The published layouts, one file each, with their own options.

To add one: a file in this folder with a reader decorated by :func:`register_dataset`, under the file's name. Nothing
else names it; files are imported when their name is asked for. From outside this package: docs/plugins.md.

A reader turns a folder into a :class:`~fed_diffmic.data.manifest.Manifest` and collects what is wrong in
:class:`~fed_diffmic.data.findings.Findings`. It leaves out rows it has reported, so that the rest can still be
checked; whoever called it raises. It decodes no image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fed_diffmic.config.groups import DatasetConfig, DatasetOptions
from fed_diffmic.config.owners import DATASETS, builtins, register
from fed_diffmic.config.plugins import find
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import Manifest

Reader = Callable[[DatasetConfig, Findings], Manifest]


def register_dataset(
    name: str, options: type[DatasetOptions] = DatasetOptions, **preset: Any
) -> Callable[[Reader], Reader]:
    """Enter a reader, with its own options, under the name that ``dataset=NAME`` selects.

    Args:
        name: of the file too, for one that is built in.
        options: declared beside the reader, which reads them by ``Options.of(cfg)``.
        preset: settings of the group ``dataset``, not its own, that choosing it sets.

    Raises:
        ValueError: the name is taken, or built in.
    """

    def enter(reader: Reader) -> Reader:
        register(DATASETS, name, options, reader, base=DatasetOptions, **preset)
        return reader

    return enter


def get_dataset(name: str) -> Reader:
    """The reader of a layout.

    Raises:
        ConfigError: no such layout.
    """
    reader: Reader = find(DATASETS, name).made
    return reader


def dataset_names() -> tuple[str, ...]:
    """Every built-in layout, sorted."""
    return tuple(builtins(DATASETS))
