"""FedYogi (Reddi et al. 2021, Algorithm 2): as FedAdam, with Yogi's second moment.

``v_t = v_{t-1} - (1 - b2) d_t^2 sign(v_{t-1} - d_t^2)``: it grows as fast as Adam's and shrinks more slowly.

Flower's ``FedYogi`` begins at ``v_{-1} = 0``, ours at the paper's ``tau^2``. From an equal start the two are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms import fedadam
from fed_diffmic.algorithms.base import register_algorithm
from fed_diffmic.algorithms.fedadam import FedAdam


@dataclass(frozen=True)
class Options(fedadam.Options):
    """FedYogi (Reddi et al. 2021): as FedAdam, its second moment shrinks more slowly."""


@register_algorithm("fedyogi", Options)
class FedYogi(FedAdam):
    """Options and state are FedAdam's."""

    def second_moment(self, before: np.ndarray, change: np.ndarray) -> np.ndarray:
        """``v_t`` from ``v_{t-1}`` and ``d_t``, of one tensor."""
        square = change**2
        return np.asarray(before - (1.0 - self.options.server_beta2) * square * np.sign(before - square))
