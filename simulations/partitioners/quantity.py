"""Sites of unlike size and alike otherwise: shares by a log-normal draw or by Zipf's law.

``partition.skew=lognormal``: shares in proportion to ``exp(partition.spread * z_i)`` with standard normal ``z_i``;
``zipf``: the ``i``-th site's share in proportion to ``i^-partition.spread``. What is dealt are whole groups, at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.config.fields import option
from fed_diffmic.config.groups import PartitionConfig, PartitionOptions
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from simulations.partitioners.base import MIN_GROUPS, cut, register_partitioner, site_names

DRAWS = 200
"""Log-normal draws before giving up on ``partition.min_images`` at every site."""


@dataclass(frozen=True)
class Options(PartitionOptions):
    """Sites of unlike size and alike otherwise: log-normal or Zipf shares."""

    skew: str = option("lognormal", "how the sites' sizes differ", choices=("lognormal", "zipf"))
    spread: float = option(
        1.0, "standard deviation of the logarithm of a site's share; zipf: the exponent", ge=0, le=10
    )


@register_partitioner("quantity", Options)
def assign(manifest: Manifest, groups: Groups, cfg: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw shares until every site has ``partition.min_images`` images; ``partition`` judges the last draw."""
    own, site = Options.of(cfg), np.zeros(len(groups), dtype=np.int64)
    for _ in range(DRAWS if own.skew == "lognormal" else 1):
        order = rng.permutation(len(groups))
        if own.skew == "lognormal":
            shares = np.exp(own.spread * rng.standard_normal(cfg.sites))
        else:
            shares = np.arange(1, cfg.sites + 1, dtype=np.float64) ** -own.spread
        site[order] = cut(groups.sizes[order], shares / shares.sum())
        images = np.bincount(site, weights=groups.sizes, minlength=cfg.sites)
        if (images >= cfg.min_images).all() and (np.bincount(site, minlength=cfg.sites) >= MIN_GROUPS).all():
            break
    return np.array(site_names(cfg.sites))[site]
