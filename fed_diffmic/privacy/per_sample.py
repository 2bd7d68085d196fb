"""Gradients of single units: one clipped gradient for an image or a patient, whatever the network does inside.

A unit's loss is taken through the whole stage at once: its regions, timesteps and noise draws are inside the function
that is differentiated (``torch.func``: ``vmap`` of ``grad``), so that no crop, cell or draw is mistaken for a unit.
What is random enters as an argument. Letters: ``U`` units, ``M`` image places of a unit, of which a mask says which are
filled, ``P`` numbers of all trained parameters.

A unit's loss is the mean over its images, and the sum of the clipped gradients is what noise is added to (Abadi et al.
2016, algorithm 1; McMahan et al. 2018 for the patient as the unit).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fed_diffmic.training.stage import Batch, StageModule

# Rounded down: sums and products in float32 may come out a little larger than the bound that the noise is made for.
MARGIN = 1e-5


@dataclass(frozen=True)
class Units:
    """A chunk of units, as tensors.

    Attributes:
        inputs: normalised images ``(U, M, 3, H, H)``, or features that were computed once, each column with ``(U, M)``
            in front; padded places hold anything finite.
        labels: ``(U, M)`` int64 or ``(U, M, C)`` float.
        draws: what is random, each ``(U, M, ...)``.
        mask: ``(U, M)`` float, 1 where an image is.
        offset: ``(C,)``, the same for all, or none.
    """

    inputs: Any
    labels: Tensor
    draws: tuple[Tensor, ...]
    mask: Tensor
    offset: Tensor | None

    def __len__(self) -> int:
        return len(self.mask)


class _Losses(nn.Module):
    """The stage's losses as a module's ``forward``, which is what ``functional_call`` calls."""

    def __init__(self, module: StageModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch, draws: tuple[Tensor, ...]) -> Tensor:
        return losses_of(self.module, batch, draws)


def losses_of(module: StageModule, batch: Batch, draws: tuple[Tensor, ...]) -> Tensor:
    """Each image's loss ``(B,)``: encoders that are trained lie inside what is differentiated."""
    if isinstance(batch.inputs, Tensor):
        batch = Batch(module.inputs(batch.inputs), batch.labels, batch.offset)
    return module.losses(batch, draws)


def trained(module: StageModule) -> dict[str, nn.Parameter]:
    """Parameters of the stage's network that are trained, by name."""
    return {name: p for name, p in module.network.named_parameters() if p.requires_grad}


def unit_gradients(module: StageModule, units: Units) -> dict[str, Tensor]:
    """Gradient of each unit's loss with respect to every trained parameter, ``(U, *shape)`` by name.

    Raises:
        RuntimeError: the network does something that depends on other units or cannot be mapped.
    """
    wrapped = _Losses(module)
    prefix = "module.network."
    parameters = {prefix + name: p.detach() for name, p in trained(module).items()}
    single = isinstance(units.inputs, Tensor)
    columns = (units.inputs,) if single else tuple(units.inputs)
    kind = None if single else type(units.inputs)

    def loss(
        values: Mapping[str, Tensor],
        columns: tuple[Tensor, ...],
        labels: Tensor,
        draws: tuple[Tensor, ...],
        mask: Tensor,
    ) -> Tensor:
        inputs = columns[0] if kind is None else kind(*columns)
        losses = functional_call(wrapped, dict(values), (Batch(inputs, labels, units.offset), draws))
        # where, not a product: a padded place must not bring in 0 * inf.
        return torch.where(mask > 0, losses, torch.zeros_like(losses)).sum() / mask.sum().clamp_min(1)

    # torch's fused attentions have no rule for vmap and would run unit by unit; the plain products have one.
    with sdpa_kernel(SDPBackend.MATH):
        gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0), randomness="error")(
            parameters, columns, units.labels, units.draws, units.mask
        )
    return {name.removeprefix(prefix): value for name, value in gradients.items()}


def norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """L2 norm over all parameters of each unit's gradient, ``(U,)`` float64.

    Squares are summed in the gradients' own type within a tensor (``sum`` adds in a cascade: a relative error of a few
    roundings, which :data:`MARGIN` covers) and in float64 over tensors. All in float64 took a fifth of a step.
    """
    return torch.stack([squares(value) for value in gradients.values()]).sum(dim=0).sqrt()


def squares(gradient: Tensor) -> Tensor:
    """Squared norms of ``(U, *shape)``, each ``(U,)`` float64, with the most that squares too small for a number lost.

    Without that a gradient of many tiny entries would have no length, and not be clipped to a bound that is tiny too.
    """
    lost = gradient[0].numel() * torch.finfo(gradient.dtype).tiny if len(gradient) else 0.0
    return gradient.flatten(1).square().sum(dim=1).double() + lost


def clip_factors(size: Tensor, bound: float) -> Tensor:
    """What each unit's gradient is multiplied by: norms ``(U,)`` become at most ``bound``; 0 for what is not finite."""
    factors = (bound * (1 - MARGIN) / size.clamp_min(1e-30)).clamp_max(1.0)
    return torch.where(torch.isfinite(size), factors, torch.zeros_like(factors))


def clipped(gradients: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Each unit's gradient scaled to a norm of at most ``bound``, ``(U, *shape)`` by name.

    One that is not finite stays so: whoever adds them has to leave it out.
    """
    size = norms(gradients)
    factor = (bound * (1 - MARGIN) / size.clamp_min(1e-30)).clamp_max(1.0)
    return {
        name: value * factor.to(value.dtype).view(-1, *[1] * (value.dim() - 1)) for name, value in gradients.items()
    }


def clipped_sum(gradients: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Sum over the units of their gradients, each scaled to a norm of at most ``bound``.

    A unit whose gradient (or its square) is not finite contributes nothing: that too is at most ``bound``, and one
    broken image must neither end the training nor be seen from outside.
    """
    size = norms(gradients)
    finite = torch.isfinite(size)
    factor = clip_factors(size, bound)
    if not bool(finite.all()):  # nothing times infinity is not nothing
        gradients = {name: value[finite] for name, value in gradients.items()}
        factor = factor[finite]
    return {name: torch.tensordot(factor.to(value.dtype), value, dims=1) for name, value in gradients.items()}


def summed(module: StageModule, chunks: Iterator[Units], bound: float) -> dict[str, Tensor]:
    """Sum of clipped gradients over any number of chunks (none: zeros), in float64 so that chunks do not matter."""
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained(module).items()}
    for units in chunks:
        if len(units):
            for name, value in clipped_sum(unit_gradients(module, units), bound).items():
                total[name] += value.double()
    return total
