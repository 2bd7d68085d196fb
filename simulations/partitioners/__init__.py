"""Partitioners: how one data set is divided over virtual sites. One file each; groups stay whole.

To add one: a file here with a function decorated by :func:`register_partitioner`, its name among the
choices of ``partition.name`` (fed_diffmic/config/simulation.py), and an import below. The tests run every
registered partitioner through the same proofs.
"""

from simulations.partitioners import dirichlet, feature, iid, institution, pathological, quantity
from simulations.partitioners.base import (
    PARTITIONERS,
    SAVED,
    Partitioner,
    partition,
    register_partitioner,
    site_names,
)
from simulations.partitioners.saved import load_partition, save_partition

__all__ = [
    "PARTITIONERS",
    "SAVED",
    "Partitioner",
    "dirichlet",
    "feature",
    "iid",
    "institution",
    "load_partition",
    "partition",
    "pathological",
    "quantity",
    "register_partitioner",
    "save_partition",
    "site_names",
]
