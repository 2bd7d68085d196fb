"""Federated algorithms, one file each with both halves: what a site adds, what the server does."""

from fed_diffmic.algorithms.base import (
    Algorithm,
    SiteUpdate,
    Tensors,
    algorithm_names,
    build_algorithm,
    register_algorithm,
)
from fed_diffmic.algorithms.fedavg import FedAvg
from fed_diffmic.algorithms.fedprox import FedProx

__all__ = [
    "Algorithm",
    "FedAvg",
    "FedProx",
    "SiteUpdate",
    "Tensors",
    "algorithm_names",
    "build_algorithm",
    "register_algorithm",
]
