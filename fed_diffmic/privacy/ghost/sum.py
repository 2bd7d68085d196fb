"""A step's sum of clipped gradients, the fast way where a network allows it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fed_diffmic.privacy import per_sample
from fed_diffmic.privacy.ghost.proof import why_not
from fed_diffmic.privacy.ghost.step import clipped_sums
from fed_diffmic.privacy.ghost.tape import CannotTapeError
from fed_diffmic.privacy.per_sample import Units, trained
from fed_diffmic.training.precision import exactly_float32
from fed_diffmic.training.stage import StageModule


def summed(module: StageModule, chunks: Iterator[Units], bound: float) -> dict[str, Tensor]:
    """Sum of clipped gradients over any number of chunks (none: zeros), in float64 so that chunks do not matter.

    What came of a single chunk stays in that chunk's own type, of which float64 would be an exact copy twice as large.

    Args:
        module: of the stage, as it is trained.
        chunks: of units; each goes through the network at once.
        bound: no unit's gradient is longer.
    """
    total: dict[str, Tensor] = {}
    for units in chunks:
        add_clipped(total, module, units, bound)
    for name, p in trained(module).items():
        if name not in total:
            total[name] = torch.zeros_like(p, dtype=torch.float64)
    return total


def nothing(module: StageModule) -> dict[str, Tensor]:
    """The sum over no units: float64 zeros by the names of the trained parameters."""
    return {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained(module).items()}


def add_clipped(total: dict[str, Tensor], module: StageModule, units: Units, bound: float) -> None:
    """Add the clipped gradients of a chunk of units, which may be none, to a sum in float64.

    Args:
        total: by name; a parameter that is not in it yet gets the chunk's own, as it is.
    """
    if len(units):
        with exactly_float32(units.mask.device):
            for name, value in _clipped(module, units, bound):
                total[name] = total[name].double().add_(value) if name in total else value


def _clipped(module: StageModule, units: Units, bound: float) -> Iterator[tuple[str, Tensor]]:
    if not why_not(module, units):
        try:
            return clipped_sums(module, units, bound)
        except CannotTapeError:  # what these units need was not tried before
            pass
    return iter(per_sample.clipped_sum(per_sample.unit_gradients(module, units), bound).items())
