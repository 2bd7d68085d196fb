"""Sites that see the same patients through different machines: groups dealt at random, images acquired differently.

Who is where is as in ``iid``; what makes the sites unlike is :mod:`fed_diffmic.data.acquisition`, whose strength is
``partition.acquisition``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.config.groups import PartitionConfig, PartitionOptions
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from simulations.partitioners import iid
from simulations.partitioners.base import register_partitioner


@dataclass(frozen=True)
class Options(PartitionOptions):
    """Feature shift: groups dealt at random, images seen through a different device at each site."""


@register_partitioner("feature", Options, acquisition=0.5)
def assign(manifest: Manifest, groups: Groups, cfg: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    """As ``iid`` does."""
    return iid.assign(manifest, groups, cfg, rng)
