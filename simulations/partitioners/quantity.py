"""Sites of unlike size and alike otherwise: shares by a log-normal draw or by Zipf's law.

``partition.skew=lognormal``: shares in proportion to ``exp(partition.spread * z_i)`` with standard normal ``z_i``;
``zipf``: the ``i``-th site's share in proportion to ``i^-partition.spread``. What is dealt are whole groups, at random.
"""

from __future__ import annotations

import numpy as np

from fed_diffmic.config.simulation import PartitionConfig
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from simulations.partitioners.base import MIN_GROUPS, cut, register_partitioner, site_names

DRAWS = 200
"""Log-normal draws before giving up on ``partition.min_images`` at every site."""


@register_partitioner("quantity")
def assign(manifest: Manifest, groups: Groups, cfg: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw shares until every site has ``partition.min_images`` images; ``partition`` judges the last draw."""
    site = np.zeros(len(groups), dtype=np.int64)
    for _ in range(DRAWS if cfg.skew == "lognormal" else 1):
        order = rng.permutation(len(groups))
        if cfg.skew == "lognormal":
            shares = np.exp(cfg.spread * rng.standard_normal(cfg.sites))
        else:
            shares = np.arange(1, cfg.sites + 1, dtype=np.float64) ** -cfg.spread
        site[order] = cut(groups.sizes[order], shares / shares.sum())
        images = np.bincount(site, weights=groups.sizes, minlength=cfg.sites)
        if (images >= cfg.min_images).all() and (np.bincount(site, minlength=cfg.sites) >= MIN_GROUPS).all():
            break
    return np.array(site_names(cfg.sites))[site]
