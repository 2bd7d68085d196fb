"""What every partitioner shares: the registry, whole groups, enough images at each site."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fed_diffmic.config.simulation import PartitionConfig
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import ConfigError, PartitionError
from fed_diffmic.seeding import numpy_generator
from simulations.partitioners.saved import load_partition

SAVED = "saved"
"""``partition.name`` of a file that an earlier run saved; its sites and splits are taken as they are."""

MIN_GROUPS = 3
"""Fewest groups a site may have: one each for training, validation and test."""

Partitioner = Callable[[Manifest, Groups, PartitionConfig, np.random.Generator], np.ndarray]
"""Gives each group its site: (G,) str, in the order of ``Groups.names``.

The manifest's rows and the groups come in an order that does not depend on the table's; all randomness is
drawn from the generator given.
"""

PARTITIONERS: dict[str, Partitioner] = {}


def register_partitioner(name: str) -> Callable[[Partitioner], Partitioner]:
    """Enter a partitioner under ``partition.name``.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Partitioner) -> Partitioner:
        if name in PARTITIONERS:
            raise ValueError(f"a partitioner named {name!r} is registered already")
        PARTITIONERS[name] = function
        return function

    return register


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
    if cfg.name not in PARTITIONERS:
        raise ConfigError("partition.name", cfg.name, ", ".join(sorted([*PARTITIONERS, SAVED])))
    manifest = manifest.in_stable_order()
    groups = Groups.of(manifest)
    sites = PARTITIONERS[cfg.name](manifest, groups, cfg, numpy_generator(seed, "partition", cfg.name))
    too_small = [
        f"{site} has {int(groups.sizes[sites == site].sum())} image(s) in {int((sites == site).sum())} group(s)"
        for site in expected_sites(sites, cfg)
        if groups.sizes[sites == site].sum() < cfg.min_images or (sites == site).sum() < MIN_GROUPS
    ]
    if too_small:
        raise PartitionError(
            f"partition={cfg.name}: {'; '.join(too_small)}; a site needs {cfg.min_images} images "
            f"(partition.min_images) in {MIN_GROUPS} groups; there are {len(manifest)} images in {len(groups)} groups",
            "Use fewer sites, another partition, or a smaller partition.min_images.",
        )
    return {str(site): manifest.subset(sites[groups.of_row] == site) for site in np.unique(sites)}


def expected_sites(sites: np.ndarray, cfg: PartitionConfig) -> list[str]:
    """Names of the sites that must exist: those that got something, and those that were asked for."""
    return sorted({*np.unique(sites).tolist(), *(() if cfg.name == "institution" else site_names(cfg.sites))})


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
