"""Ditto (Li et al. 2021, "Ditto: fair and robust federated learning through personalization", Algorithm 1).

The global model is FedAvg's. Beside it each site trains a model of its own, ``min_v F_k(v) + lambda/2 ||v - w_t||^2``,
with as many steps, from where it stood after the round before (at first: the global weights). ``lambda = 0`` is
training alone, a large one the global model. What is evaluated at a site is its own model, which never leaves it; what
is saved as the run's model is the global one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fed_diffmic.algorithms.base import EXTRA, SUMS, Algorithm, LocalContext, SiteHalf, Tensors, register_algorithm
from fed_diffmic.algorithms.fedprox import Proximal
from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import Own

if TYPE_CHECKING:
    import torch

OWN = f"{EXTRA}personal."


class _Personal(SiteHalf):
    personal = True

    def __init__(self, context: LocalContext, weight: float) -> None:
        self._pull = Proximal(context, weight)
        self._state = dict(context.site_state)

    def personal_start(self) -> Tensors:
        """The site's model of the round before; nothing in the first round: it starts from the global weights."""
        return {name.removeprefix(OWN): value for name, value in self._state.items()}

    def personal_penalty(self) -> torch.Tensor | None:
        """The pull towards the round's global weights."""
        return self._pull.penalty()

    def keep_personal(self, tensors: Tensors) -> None:
        """It becomes the state."""
        self._state = {OWN + name: value for name, value in tensors.items()}

    def finish(self) -> tuple[Tensors, Tensors]:
        """Nothing for the server; the site's own model to keep."""
        return {}, self._state


@dataclass(frozen=True)
class Options(Own):
    """Ditto (Li et al. 2021): beside FedAvg's global model each site trains its own, held near it."""

    ditto_lambda: float = option(0.1, "pull of a site's own model towards the global one", ge=0, le=1000)


@register_algorithm("ditto", Options)
class Ditto(Algorithm):
    """``strategy.ditto_lambda`` is ``lambda``. State of a site: ``algorithm/personal.<name>``."""

    needs = SUMS
    options: Options
    private = False
    personal = True

    def site_half(self, context: LocalContext) -> SiteHalf:
        """Trains the site's own model after the update."""
        return _Personal(context, self.options.ditto_lambda)

    def overlay(self, site_state: Tensors, *, training: bool) -> Tensors:
        """The site's own model, where it is evaluated."""
        if training:
            return {}
        return {name.removeprefix(OWN): value for name, value in site_state.items() if name.startswith(OWN)}
