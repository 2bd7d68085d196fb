"""What every partitioner shares: the registry, whole groups, enough images at each site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fed_diffmic.config.groups import PartitionConfig, PartitionOptions, partition_options
from fed_diffmic.config.owners import PARTITIONERS, builtins, register
from fed_diffmic.config.plugins import find
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import PartitionError
from fed_diffmic.seeding import numpy_generator
from simulations.partitioners.saved import SAVED, load_partition

MIN_GROUPS = 3
"""Fewest groups a site may have: one each for training, validation and test."""

Partitioner = Callable[[Manifest, Groups, PartitionConfig, np.random.Generator], np.ndarray]
"""Gives each group its site: (G,) str, in the order of ``Groups.names``.

The manifest's rows and the groups come in an order that does not depend on the table's; all randomness is
drawn from the generator given.
"""


def register_partitioner(
    name: str, options: type[PartitionOptions] = PartitionOptions, **preset: Any
) -> Callable[[Partitioner], Partitioner]:
    """Enter a partitioner, with its own options, under ``partition.name``.

    Args:
        name: of the file too, for one that is built in.
        options: declared beside the function, which reads them by ``Options.of(cfg)``.
        preset: settings of the group ``partition``, not its own, that choosing it sets.

    Raises:
        ValueError: the name is taken, or built in.
    """

    def enter(function: Partitioner) -> Partitioner:
        register(PARTITIONERS, name, options, function, base=PartitionOptions, **preset)
        return function

    return enter


def partitioner_names() -> list[str]:
    """Names of the built-in partitioners, sorted; a saved partition, which divides nothing, is not among them."""
    return [name for name, owner in builtins(PARTITIONERS).items() if owner.made is not None]


def partition(manifest: Manifest, cfg: PartitionConfig, seed: int) -> dict[str, Manifest]:
    """Divide a data set over virtual sites.

    Args:
        manifest: all images; the order of its rows does not matter.
        cfg: which partitioner, how many sites, fewest images a site.
        seed: of the run.

    Returns:
        Site name -> its part, sorted by name. Every image is at one site, every group too.

    Raises:
        ConfigError: unknown partitioner.
        PartitionError: a site would have too few images or groups, says which and how many; a saved partition that
            is not of these images.
    """
    if cfg.name == SAVED:
        return load_partition(str(cfg.file), manifest.in_stable_order())
    assign: Partitioner = find(PARTITIONERS, cfg.name).made
    manifest = manifest.in_stable_order()
    groups = Groups.of(manifest)
    sites = assign(manifest, groups, cfg, numpy_generator(seed, "partition", cfg.name))
    too_small = [
        f"{site} has {int(groups.sizes[sites == site].sum())} image(s) in {int((sites == site).sum())} group(s)"
        for site in expected_sites(sites, cfg)
        if groups.sizes[sites == site].sum() < cfg.min_images or (sites == site).sum() < MIN_GROUPS
    ]
    if too_small:
        raise PartitionError(
            f"partition={cfg.name}: {'; '.join(too_small)}; a site needs {cfg.min_images} images "
            f"(partition.min_images) in {MIN_GROUPS} groups; there are {len(manifest)} images in {len(groups)} groups",
            "Use fewer sites (partition.sites; partition=institution: fewer institutions), another partition, or, "
            "where images are lacking and not groups, a smaller partition.min_images.",
        )
    return {str(site): manifest.subset(sites[groups.of_row] == site) for site in np.unique(sites)}


def expected_sites(sites: np.ndarray, cfg: PartitionConfig) -> list[str]:
    """Names of the sites that must exist: those that got something, and those that were asked for."""
    given = partition_options(cfg.name).given_sites
    return sorted({*np.unique(sites).tolist(), *(() if given else site_names(cfg.sites))})


def cut(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Cut a row of groups where their images reach the shares.

    Args:
        sizes: ``(G,)`` images of each group, in the order of the row.
        shares: ``(K,)``, their sum is 1.

    Returns:
        ``(G,)`` int64, the place in ``shares`` of each group.
    """
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    return np.minimum(np.searchsorted(np.cumsum(shares), middle, side="right"), len(shares) - 1)


def site_names(count: int) -> list[str]:
    """``site-1`` and so on, padded so that sorting by name keeps them in order."""
    width = len(str(count))
    return [f"site-{i + 1:0{width}d}" for i in range(count)]
