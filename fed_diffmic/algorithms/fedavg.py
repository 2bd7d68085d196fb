"""FedAvg (McMahan et al. 2017, Algorithm 1): ``w <- sum_k (n_k / n) w_k``."""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.algorithms.base import Algorithm, register_algorithm
from fed_diffmic.config.owners import Own


@dataclass(frozen=True)
class Options(Own):
    """FedAvg (McMahan et al. 2017): the average of the sites' weights."""


@register_algorithm("fedavg", Options)
class FedAvg(Algorithm):
    """Sites train freely; the server averages, weighted by images or equally."""

    mean_of_updates = True
