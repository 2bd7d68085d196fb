"""FedBN (Li et al. 2021, "FedBN: federated learning on non-IID features via local batch normalization").

Every normalisation layer (batch, group and layer norm, affine weights as well as statistics) is trained and kept at the
site; everything else is averaged as in FedAvg. What is evaluated at a site is the global model with the site's own
normalisation. The global model alone holds the normalisation that the run started from, which no site trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fed_diffmic.algorithms.base import EXTRA, SUMS, Algorithm, LocalContext, SiteHalf, Tensors, register_algorithm
from fed_diffmic.config.owners import Own

if TYPE_CHECKING:
    from torch import nn

KEPT = f"{EXTRA}kept."


class KeepTensors(SiteHalf):
    """Trains freely and keeps some tensors of the network at the site."""

    def __init__(self, context: LocalContext, kept: frozenset[str]) -> None:
        self._context = context
        self._kept = kept

    def finish(self) -> tuple[Tensors, Tensors]:
        """Nothing for the server; the normalisation as it is now."""
        own = self._context.network.state_dict()
        return {}, {KEPT + name: own[name].detach().cpu().numpy().copy() for name in sorted(self._kept)}


@dataclass(frozen=True)
class Options(Own):
    """FedBN (Li et al. 2021): normalisation layers are trained and kept at each site, the rest is averaged."""


@register_algorithm("fedbn", Options)
class FedBN(Algorithm):
    """State of a site: ``algorithm/kept.<name>``."""

    needs = SUMS
    personal = True
    global_is_trained = False

    def site_half(self, context: LocalContext) -> SiteHalf:
        """Keeps the normalisation after the update."""
        return KeepTensors(context, self.kept(context.network, context.names))

    def kept(self, network: nn.Module, names: Mapping[str, str]) -> frozenset[str]:
        """Whatever belongs to a normalisation layer."""
        from fed_diffmic.models.normalisation import normalisation_layers

        layers = normalisation_layers(network)
        return frozenset(name for name in names if name.rpartition(".")[0] in layers)

    def overlay(self, site_state: Tensors, *, training: bool) -> Tensors:
        """The site's own normalisation, always."""
        return {name.removeprefix(KEPT): value for name, value in site_state.items() if name.startswith(KEPT)}
