"""``fd.datasets.load`` and ``fd.partition``: a data set as a manifest, and its parts by site."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fed_diffmic.api.settings import configuration
from fed_diffmic.config.owners import DATASETS
from fed_diffmic.config.plugins import names as known_names
from fed_diffmic.data.datasets import get_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.data.open import open_dataset

__all__ = ["load", "names", "partition"]


def names() -> tuple[str, ...]:
    """The layouts that :func:`load` knows, those of installed packages too.

    Examples:
        >>> import fed_diffmic as fd
        >>> "table" in fd.datasets.names()
        True
    """
    return tuple(known_names(DATASETS))


def load(name: str, root: str | Path, *, image_side: int | None = None, **settings: Any) -> Manifest:
    """Read a data set; ``Manifest.table`` is a pandas table, one row an image.

    What was found in it and handled is said as :class:`UserWarning`, without any image's name.

    Args:
        name: a layout: one of :func:`names`.
        root: its folder, or for ``table`` the file. Where there are no ``phantoms`` yet, they are drawn there.
        image_side: none: tables are read, and no image is opened. Pixels: the images are decoded (into
            ``cache_dir``) and checked as a run with this ``model.image_side`` does, duplicates settled.
        settings: of the group ``dataset``: ``classes=[...]``, ``on_bad_image="skip"``, ``cache_dir=...``.

    Raises:
        ConfigError: no such layout or setting.
        DataError: everything that is wrong with the data, together.

    Examples:
        >>> import fed_diffmic as fd
        >>> manifest = fd.datasets.load("aptos2019", "first/phantoms")
        >>> manifest.task, len(manifest)
        ('ordinal', 48)
    """
    cfg = configuration({"dataset": name, "dataset.root": root}, {"dataset": settings}).dataset
    if image_side is None:
        findings = Findings()
        manifest = get_dataset(cfg.name)(cfg, findings)
        findings.raise_if_errors()
    else:
        opened = open_dataset(cfg, image_side, findings_path=None)
        manifest, findings = opened.manifest, opened.findings
    for finding in findings:
        warnings.warn(str(finding).removeprefix("warning "), stacklevel=2)
    return manifest


def partition(manifest: Manifest, name: str = "iid", *, seed: int = 0, **settings: Any) -> dict[str, Manifest]:
    """Divide a data set over virtual sites; a patient's images stay together.

    A run with the same seed and settings divides the same way where the manifest was loaded with its ``image_side``:
    the order of images is that of their content, which is not known before.

    Args:
        name: a preset: ``iid``, ``dirichlet``, ``institution``, ... (``fed-diffmic options partition``).
        seed: of the run.
        settings: of the group ``partition``: ``sites=4``, ``alpha=0.3``, ``min_images=8``.

    Returns:
        Site name -> its part, sorted by name.

    Raises:
        ConfigError: no such partition or setting.
        PartitionError: a site would have too few images.

    Examples:
        >>> import fed_diffmic as fd
        >>> manifest = fd.datasets.load("aptos2019", "first/phantoms")
        >>> sites = fd.partition(manifest, "iid", sites=2, min_images=4)
        >>> {name: len(part) for name, part in sites.items()}
        {'site-1': 24, 'site-2': 24}
    """
    config = configuration({"partition": name, "seed": seed}, {"partition": settings})
    from simulations.partitioners import partition as divide

    return divide(manifest, config.partition, config.seed)
