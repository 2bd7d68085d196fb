"""Federated algorithms, one file each with both halves: what a site adds, what the server does.

To add one: a file here with a class decorated by :func:`register_algorithm`, its name among the choices of
``strategy.name`` and its options in the same group (fed_diffmic/config/simulation.py), ``configs/strategy/NAME.yaml``,
and an import below. The tests run every registered algorithm through the same proofs.
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
from fed_diffmic.algorithms.clipped_mean import ClippedMean
from fed_diffmic.algorithms.ditto import Ditto
from fed_diffmic.algorithms.fedadam import FedAdam
from fed_diffmic.algorithms.fedavg import FedAvg
from fed_diffmic.algorithms.fedavgm import FedAvgM
from fed_diffmic.algorithms.fedbn import FedBN
from fed_diffmic.algorithms.feddyn import FedDyn
from fed_diffmic.algorithms.fednova import FedNova
from fed_diffmic.algorithms.fedper import FedPer
from fed_diffmic.algorithms.fedprox import FedProx
from fed_diffmic.algorithms.fedyogi import FedYogi
from fed_diffmic.algorithms.krum import Krum
from fed_diffmic.algorithms.median import Median
from fed_diffmic.algorithms.qfedavg import QFedAvg
from fed_diffmic.algorithms.scaffold import Scaffold
from fed_diffmic.algorithms.trimmed_mean import TrimmedMean

__all__ = [
    "EXTRA",
    "Algorithm",
    "ClippedMean",
    "Ditto",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedDyn",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedYogi",
    "Krum",
    "LocalContext",
    "Median",
    "QFedAvg",
    "Scaffold",
    "SiteHalf",
    "SiteUpdate",
    "Tensors",
    "TrimmedMean",
    "algorithm_class",
    "algorithm_names",
    "build_algorithm",
    "register_algorithm",
]
