"""FedAvg (McMahan et al. 2017, Algorithm 1): ``w <- sum_k (n_k / n) w_k``."""

from __future__ import annotations

from fed_diffmic.algorithms.base import Algorithm, register_algorithm


@register_algorithm("fedavg")
class FedAvg(Algorithm):
    """Sites train freely; the server averages, weighted by images or equally."""

    needs = "sums"
