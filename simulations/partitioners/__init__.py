"""Partitioners: how one data set is divided over virtual sites. One file each; groups stay whole.

To add one: a file here with a function decorated by :func:`register_partitioner`, under the file's name, with its own
options beside it. Nothing else names it; files are imported when their name is asked for. The tests run every
partitioner through the same proofs. From outside this package: docs/plugins.md.
"""

from simulations.partitioners.base import Partitioner, partition, partitioner_names, register_partitioner, site_names
from simulations.partitioners.saved import SAVED, load_partition, save_partition

__all__ = [
    "SAVED",
    "Partitioner",
    "load_partition",
    "partition",
    "partitioner_names",
    "register_partitioner",
    "save_partition",
    "site_names",
]
