"""FedPer (Arivazhagan et al. 2019, "Federated learning with personalization layers"): shared encoders, own heads.

What lies inside the encoders is averaged as in FedAvg; everything behind them is trained and kept at the site. FedRep
(Collins et al. 2021) divides the network alike and trains the two parts one after the other; here both take every step.
What is evaluated at a site is the shared encoder with the site's own head. In a stage that trains no encoder
(``encoders=frozen``) there would be nothing to share: there nothing is kept, and the stage is FedAvg's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fed_diffmic.algorithms.base import SUMS, Algorithm, LocalContext, SiteHalf, Tensors, register_algorithm
from fed_diffmic.algorithms.fedbn import KEPT, KeepTensors
from fed_diffmic.config.owners import Own

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Options(Own):
    """FedPer (Arivazhagan et al. 2019): encoders are averaged, the heads behind them stay at each site."""


@register_algorithm("fedper", Options)
class FedPer(Algorithm):
    """State of a site: ``algorithm/kept.<name>``."""

    needs = SUMS
    personal = True
    global_is_trained = False

    def site_half(self, context: LocalContext) -> SiteHalf:
        """Keeps the head after the update."""
        return KeepTensors(context, self.kept(context.network, context.names))

    def kept(self, network: nn.Module, names: Mapping[str, str]) -> frozenset[str]:
        """Whatever lies outside the encoders; nothing where no encoder is trained."""
        from fed_diffmic.models.backbones import Encoder

        prefixes = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, Encoder))
        inside = {name for name in names if name.startswith(prefixes)}
        trained = any(names[name] == "parameter" for name in inside)
        return frozenset(name for name in names if name not in inside) if trained else frozenset()

    def overlay(self, site_state: Tensors, *, training: bool) -> Tensors:
        """The site's own head, always."""
        return {name.removeprefix(KEPT): value for name, value in site_state.items() if name.startswith(KEPT)}
