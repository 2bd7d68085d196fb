"""Sites of ``partition.classes_per_site`` classes each (McMahan et al. 2017, section 3: "pathological" non-IID).

Every class is dealt to about as many sites, and its groups are shared out evenly among these. The class of a group is
its stratum (``Groups.strata``): for multi-label data the rarest label it carries, and "no label" is one more class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.config.fields import option
from fed_diffmic.config.groups import PartitionConfig, PartitionOptions
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import PartitionError
from simulations.partitioners.base import cut, register_partitioner, site_names


@dataclass(frozen=True)
class Options(PartitionOptions):
    """Each site holds few classes (McMahan et al. 2017); groups stay whole."""

    classes_per_site: int = option(2, "classes that a site holds", ge=1, le=10_000)


@register_partitioner("pathological", Options)
def assign(manifest: Manifest, groups: Groups, cfg: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    """Deal classes to sites, then each class's groups to its sites.

    Raises:
        PartitionError: the sites cannot hold all classes, or a class has too few groups for its sites.
    """
    classes = rng.permutation(np.unique(groups.strata))
    each = min(Options.of(cfg).classes_per_site, len(classes))
    if cfg.sites * each < len(classes):
        raise PartitionError(
            f"partition=pathological: {cfg.sites} sites of {each} class(es) hold {cfg.sites * each} of the "
            f"{len(classes)} classes",
            "Use more sites or a larger partition.classes_per_site.",
        )
    # One order of the classes, repeated: any run of `each` consecutive places holds different ones.
    deck = np.resize(classes, cfg.sites * each).reshape(cfg.sites, each)
    deck = deck[rng.permutation(cfg.sites)]
    site = np.zeros(len(groups), dtype=np.int64)
    for stratum in classes:
        holders = np.flatnonzero((deck == stratum).any(axis=1))
        members = rng.permutation(np.flatnonzero(groups.strata == stratum))
        site[members] = holders[cut(groups.sizes[members], np.full(len(holders), 1.0 / len(holders)))]
    return np.array(site_names(cfg.sites))[site]
