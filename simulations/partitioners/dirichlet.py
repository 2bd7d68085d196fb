"""Sites of unlike class mixes: each class is dealt by proportions drawn from a Dirichlet distribution.

Hsu, Qi and Brown 2019 ("Measuring the effects of non-identical data distribution for federated visual
classification"), in the common form that draws proportions over sites for each class: a small
``partition.alpha`` gives sites of few classes, a large one sites that are alike. What is dealt are whole
groups; the class of a group is its stratum (``Groups.strata``), for multi-label data the rarest label it
carries, and "no label" is one more class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.config.fields import option
from fed_diffmic.config.groups import PartitionConfig, PartitionOptions
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import PartitionError
from simulations.partitioners.base import MIN_GROUPS, cut, register_partitioner, site_names

DRAWS = 200
"""Draws before giving up on ``partition.min_images`` at every site."""


@dataclass(frozen=True)
class Options(PartitionOptions):
    """Label skew: each class's groups are shared out by a Dirichlet draw; the smaller alpha, the more unlike the
    sites.
    """

    alpha: float = option(0.5, "concentration; small values give unlike sites", gt=0, le=1e6)


@register_partitioner("dirichlet", Options)
def assign(manifest: Manifest, groups: Groups, cfg: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw until every site has ``partition.min_images`` images, at most :data:`DRAWS` times.

    Raises:
        PartitionError: no draw did; says which sites of the best draw had how many.
    """
    alpha = Options.of(cfg).alpha
    best: np.ndarray = np.zeros(len(groups), dtype=np.int64)
    best_images: np.ndarray = np.zeros(cfg.sites)
    for _ in range(DRAWS):
        site = _draw(groups, cfg.sites, alpha, rng)
        images: np.ndarray = np.bincount(site, weights=groups.sizes, minlength=cfg.sites)
        enough = images >= cfg.min_images
        if enough.all() and (np.bincount(site, minlength=cfg.sites) >= MIN_GROUPS).all():
            return np.array(site_names(cfg.sites))[site]
        if images.min() >= best_images.min():
            best, best_images = site, images
    number = np.bincount(best, minlength=cfg.sites)
    short = [
        f"{name} has {int(n)} image(s) in {k} group(s)"
        for name, n, k in zip(site_names(cfg.sites), best_images, number, strict=True)
        if n < cfg.min_images or k < MIN_GROUPS
    ]
    raise PartitionError(
        f"partition=dirichlet with alpha {alpha:g}: in the best of {DRAWS} draws {'; '.join(short)}; a site needs "
        f"{cfg.min_images} images (partition.min_images) in {MIN_GROUPS} groups",
        "Use fewer sites (partition.sites), a larger partition.alpha or, where images are lacking and not groups, a "
        "smaller partition.min_images.",
    )


def _draw(groups: Groups, sites: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """(G,) site index: within each stratum, shuffled groups are cut where their images reach the proportions."""
    site = np.empty(len(groups), dtype=np.int64)
    for stratum in np.unique(groups.strata):
        members = rng.permutation(np.flatnonzero(groups.strata == stratum))
        site[members] = cut(groups.sizes[members], rng.dirichlet(np.full(sites, alpha)))
    return site
