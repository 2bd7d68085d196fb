"""Sites that are alike: groups dealt at random, each site about as many images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.config.groups import PartitionConfig, PartitionOptions
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from simulations.partitioners.base import register_partitioner, site_names


@dataclass(frozen=True)
class Options(PartitionOptions):
    """Groups dealt out at random: sites of equal size and alike."""


@register_partitioner("iid", Options)
def assign(manifest: Manifest, groups: Groups, cfg: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    """Shuffle the groups and cut the row of their images into ``partition.sites`` equal lengths."""
    order = rng.permutation(len(groups))
    sizes = groups.sizes[order]
    middle = np.cumsum(sizes) - sizes / 2
    site = np.minimum((middle * cfg.sites / sizes.sum()).astype(np.int64), cfg.sites - 1)
    sites = np.empty(len(groups), dtype=object)
    sites[order] = np.array(site_names(cfg.sites), dtype=object)[site]
    return sites.astype(str)
