"""Whether a network's clipped sums may be taken together: tried against backpropagation of one unit at a time.

Gradients of units that go through a network one by one cannot mix, whatever it does. Taken together they could: a
statistic over the batch, rows in an order that is not known, a weight that is used unseen. What was missed would be
clipped as if it were not there, and the promise made for it would be wrong. So before a network is trained so, two
units, one of them with two images, go through it both ways, on random images, so that the choice does not depend on
data; weights that are 0 or next to it, which hide what lies before them, are given other values for that time. Once
for each network of a process. Whoever does not pass is trained unit by unit, as are networks that the tape cannot
follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fed_diffmic.privacy.ghost.step import ghost_of
from fed_diffmic.privacy.per_sample import Units, losses_of, trained
from fed_diffmic.training.stage import Batch, StageModule

TOLERANCE = 1e-3
"""Of a tensor's norm: rounding gives some 1e-5 in float32, an image that has an effect on another one far more."""

TRIES = 3
"""Pairs of units, of which one must pass: rounding may let two nearly alike regions of an image change places."""

_FLOOR = 1e-5  # of the whole gradient's norm: what is smaller is not compared any closer
_HIDES = 1e-2  # a layer's scale of 1e-6 leaves of what lies before it less than is compared
_PLACES = ((0, 1), (2, 2))  # images of two units; the last place is not filled
_FILLED = ((1.0, 1.0), (1.0, 0.0))


@dataclass(frozen=True)
class _Kind:
    """What a verdict is for: which parameters are trained, which layers are in training mode, what goes in."""

    trained: tuple[str, ...]
    training: tuple[bool, ...]
    inputs: tuple[Any, ...]


_VERDICTS: WeakKeyDictionary[StageModule, dict[_Kind, str]] = WeakKeyDictionary()


def why_not(module: StageModule, units: Units) -> str:
    """Why units like these must be taken one by one; empty: they may be taken together.

    Args:
        module: as it is trained.
        units: for their shapes alone.
    """
    inputs = units.inputs if isinstance(units.inputs, tuple) else (units.inputs,)
    kind = _Kind(
        tuple(trained(module)),
        tuple(layer.training for layer in module.modules()),
        tuple((column.shape[2:], column.dtype, column.device.type) for column in inputs),
    )
    known = _VERDICTS.setdefault(module, {})
    if kind not in known:
        with _no_zeros(dict(module.network.named_parameters())):
            for seed in range(TRIES):
                known[kind] = _differs(module, _random(module, units, seed))
                if not known[kind]:
                    break
    return known[kind]


def _differs(module: StageModule, units: Units) -> str:
    """What of the units' gradients differs from those of one unit at a time; empty: nothing."""
    try:
        ghost = ghost_of(module, units)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    alone = [_alone(module, units, unit) for unit in range(len(units))]
    factors = torch.tensor([1.0, 0.5], dtype=torch.float64, device=units.mask.device)
    whole = torch.stack([_norm(gradients.values()) for gradients in alone])
    squares, sums = dict(ghost.squares), dict(ghost.sums(factors))
    for name, first in alone[0].items():
        norms = torch.stack([_norm([gradients[name]]) for gradients in alone])
        found = squares[name].clamp_min(0).sqrt() if name in squares else torch.zeros_like(norms)
        want = first.double() + 0.5 * alone[1][name].double()
        got = sums[name].double() if name in sums else torch.zeros_like(want)
        near = bool(((found - norms).abs() <= TOLERANCE * norms + _FLOOR * whole).all())
        # Not a number is not near.
        if not (near and bool((got - want).norm() <= TOLERANCE * norms.sum() + _FLOOR * whole.sum())):
            return f"the gradient of {name} is another one than of one unit at a time"
    return ""


def _alone(module: StageModule, units: Units, unit: int) -> dict[str, Tensor]:
    """One unit's gradient, by backpropagation of its own images."""
    filled, parameters = units.mask[unit] > 0, trained(module)
    single = isinstance(units.inputs, Tensor)
    inputs = units.inputs[unit][filled] if single else type(units.inputs)(*(c[unit][filled] for c in units.inputs))
    batch = Batch(inputs, units.labels[unit][filled], units.offset)
    loss = losses_of(module, batch, tuple(drawn[unit][filled] for drawn in units.draws)).mean()
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(parameters.items(), found, strict=True)
    }


def _norm(values: Any) -> Tensor:
    return torch.stack([value.double().square().sum() for value in values]).sum().sqrt()


def _random(module: StageModule, like: Units, seed: int) -> Units:
    """Two units of random images, like those in shape, type and place."""
    generator, device = torch.Generator().manual_seed(seed), like.mask.device
    places, images = torch.tensor(_PLACES), 3

    def column(of: Tensor) -> Tensor:
        made = torch.randn((images, *of.shape[2:]), generator=generator, dtype=torch.float32)
        return made[places].to(device, of.dtype)

    classes = torch.randint(module.spec.num_classes, (images,), generator=generator)
    several = like.labels.dim() == 3
    labels = torch.nn.functional.one_hot(classes, module.spec.num_classes) if several else classes
    draws = module.draws(images, generator, "cpu")
    return Units(
        inputs=column(like.inputs) if isinstance(like.inputs, Tensor) else type(like.inputs)(*map(column, like.inputs)),
        labels=labels[places].to(device, like.labels.dtype),
        draws=tuple(drawn[places].to(device, own.dtype) for drawn, own in zip(draws, like.draws, strict=True)),
        mask=torch.tensor(_FILLED, device=device),
        offset=like.offset,
    )


@contextmanager
def _no_zeros(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """No parameter is next to 0 throughout, for a while; what is not trained now may be set by the next round."""
    generator = torch.Generator().manual_seed(1)
    zeros = [p for p in parameters.values() if not bool((p.detach().abs() > _HIDES).any())]
    kept = [p.detach().clone() for p in zeros]
    with torch.no_grad():
        for p in zeros:
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(zeros, kept, strict=True):
                p.copy_(value)
