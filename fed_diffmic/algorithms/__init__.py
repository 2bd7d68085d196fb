"""Federated algorithms, one file each with both halves: what a site adds, what the server does; and its own options.

To add one: a file here with a class decorated by :func:`register_algorithm`, under the file's name. Nothing else names
it; files are imported when their name is asked for. The tests run every algorithm through the same proofs. From outside
this package: docs/plugins.md.
"""

from fed_diffmic.algorithms.base import (
    EXTRA,
    Algorithm,
    LocalContext,
    SiteHalf,
    SiteUpdate,
    Tensors,
    algorithm_class,
    algorithm_names,
    build_algorithm,
    register_algorithm,
)

__all__ = [
    "EXTRA",
    "Algorithm",
    "LocalContext",
    "SiteHalf",
    "SiteUpdate",
    "Tensors",
    "algorithm_class",
    "algorithm_names",
    "build_algorithm",
    "register_algorithm",
]
