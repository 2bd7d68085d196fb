"""One site for each institution: sites given by nature, with their own mix of classes and devices.

``partition.sites`` is not used: the number of sites is that of the institutions. A group whose images come
from several institutions goes whole to the one that has most of them (of equals, the first by name).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fed_diffmic.config.groups import PartitionConfig, PartitionOptions
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import PartitionError
from simulations.partitioners.base import register_partitioner


@dataclass(frozen=True)
class Options(PartitionOptions):
    """One site for each institution that the data name."""

    given_sites: ClassVar[bool] = True


@register_partitioner("institution", Options)
def assign(manifest: Manifest, groups: Groups, cfg: PartitionConfig, rng: np.random.Generator) -> np.ndarray:
    """Give each group the site named after its institution; the rest of the arguments are not used.

    Raises:
        PartitionError: fewer than two institutions, images without one, or two whose names cannot be told apart.
    """
    values = manifest.table["institution"].to_numpy(dtype=object).astype(str)
    unknown = int((values == "").sum())
    names, of_row = np.unique(values, return_inverse=True)
    if unknown or len(names) < 2:
        found = f"{unknown} of {len(values)} images have none" if unknown else f"there is {len(names)}"
        raise PartitionError(
            f"partition=institution needs two or more institutions and one for every image; {found}",
            "Fill the institution column, or choose partition=iid or partition=dirichlet.",
        )
    sites = np.array([site_name(name) for name in names])
    if len(np.unique(sites)) < len(sites):
        raise PartitionError(
            f"partition=institution: {len(sites)} institutions give only {len(np.unique(sites))} site names "
            "(letters and digits of any script, dot, dash and underscore are kept)",
            "Give the institutions names that differ in those.",
        )
    images = np.zeros((len(groups), len(names)), dtype=np.int64)
    np.add.at(images, (groups.of_row, of_row), 1)
    return sites[images.argmax(axis=1)]


def site_name(institution: str) -> str:
    """A name that is safe in messages and as part of a path, in the script in which it was written."""
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", institution)).strip("._") or "_"
