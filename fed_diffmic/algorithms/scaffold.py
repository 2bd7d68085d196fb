"""SCAFFOLD (Karimireddy et al. 2020, Algorithm 1): control variates against the drift of unlike sites.

A site's step follows ``g_k(y) - c_k + c``; afterwards ``c_k+ = c_k - c + (x - y_K) / (K eta)`` (option II). For plain
SGD at a constant rate that is exactly the mean of the step's own gradients ``g_k`` over the K local steps, and so it
is computed here: the mean is defined for any optimizer, learning-rate schedule and clipping, where the quotient is
not. The server averages ``y`` as FedAvg does, times ``strategy.server_lr``, and moves ``c`` by ``s sum_k p_k (c_k+ -
c_k)``, where ``s`` is the share that the sites that took part have of all sites' weight (``|S|/N`` of ``N`` equal
ones). With equal weights these are the paper's, with ``weighting=examples`` ``c`` is the gradient of the weighted
objective: ``s p_k`` does not depend on who else took part, so ``c`` is the weighted mean of all ``c_k``. A site
receives ``c`` and sends ``c + c_k+ - c_k`` back in its place: twice FedAvg's bytes each way. Under differential
privacy the gradients are the noised ones, so the control reveals nothing that they do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import (
    EXTRA,
    SUMS,
    Algorithm,
    LocalContext,
    SiteHalf,
    Tensors,
    parameters_of,
    register_algorithm,
    with_means,
)
from fed_diffmic.algorithms.sums import Sums
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own

CONTROL = f"{EXTRA}control."
OWN = f"{EXTRA}own."


class _Control(SiteHalf):
    def __init__(self, context: LocalContext) -> None:
        self._parameters = context.trained()
        self._global = context.tensors(context.received, CONTROL)
        self._own = context.tensors(context.site_state, OWN)
        import torch

        self._sum = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self._parameters}
        self._steps = 0

    def correct(self) -> None:
        """``g <- g - c_k + c``; the step's own gradient is remembered."""
        import torch

        self._steps += 1
        with torch.no_grad():
            for name, parameter in self._parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self._sum[name] += parameter.grad
                parameter.grad += self._global[name] - self._own[name]

    def finish(self) -> tuple[Tensors, Tensors]:
        """``c + c_k+ - c_k`` for the server, ``c_k+`` to keep."""
        sent, kept = {}, {}
        for name, parameter in self._parameters:
            own = (self._sum[name] / max(self._steps, 1)).to(parameter.dtype)
            moved = self._global[name] + own - self._own[name]
            sent[CONTROL + name] = moved.cpu().numpy().copy()
            kept[OWN + name] = own.cpu().numpy().copy()
        return sent, kept


@dataclass(frozen=True)
class Options(Own):
    """SCAFFOLD (Karimireddy et al. 2020): control variates against the drift of unlike sites; twice the bytes."""

    server_lr: float = option(1.0, "learning rate of the server's step", gt=0, le=1000)


@register_algorithm("scaffold", Options)
class Scaffold(Algorithm):
    """State of the server: ``c/<name>``, float64; of a site: ``algorithm/own.<name>``, its ``c_k``."""

    needs = SUMS
    options: Options

    def site_half(self, context: LocalContext) -> SiteHalf:
        """Corrects every gradient."""
        return _Control(context)

    def initial_state(self, weights: Tensors, kinds: Mapping[str, str]) -> Tensors:
        """``c = 0`` for every parameter."""
        return {f"c/{name}": np.zeros(weights[name].shape) for name in parameters_of(kinds)}

    def broadcast(self, current: Tensors, server_state: Tensors) -> Tensors:
        """``c``, in the parameters' dtype."""
        controls = {name.removeprefix("c/"): value for name, value in server_state.items()}
        return {CONTROL + name: value.astype(current[name].dtype) for name, value in controls.items()}

    def from_sums(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        sums: Sums,
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """Algorithm 1, lines 16 and 17."""
        share = sums.present(sites)
        moved, after = {}, {}
        for name in parameters_of(kinds):
            stepped = current[name].astype(np.float64) + self.options.server_lr * sums.change(name)
            moved[name] = stepped.astype(current[name].dtype)
            after[f"c/{name}"] = server_state[f"c/{name}"] + share * sums.change(CONTROL + name)
        return with_means(moved, current, kinds, sums), after
