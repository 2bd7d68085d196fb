"""A step over several devices: which images are whose, and what a device's share of the loss is.

The lead device makes everything that is random for the whole batch, as it would alone: which images, how they are
augmented, timesteps and noises. Then the batch is cut. Each device gives the sum of its images' losses over the number
of images of the *whole* batch, so the sum of the devices' gradients is the gradient of the batch's mean however
unevenly it was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fed_diffmic.training.stage import Batch, StageModule


@dataclass(frozen=True)
class Part:
    """One device's images of a step; may be none.

    Attributes:
        inputs: normalised images ``(b, 3, H, H)``, or the features that were computed of them once.
        labels: ``(b,)`` int64 or ``(b, C)`` float.
        draws: what is random, each ``(b, ...)``.
        offset: the site's prior offset ``(C,)``, or none.
        whole: images of the whole batch.
    """

    inputs: Any
    labels: Tensor
    draws: tuple[Tensor, ...]
    offset: Tensor | None
    whole: int

    def __len__(self) -> int:
        return len(self.labels)


class Team(Protocol):
    """The further devices of a site, and the one that leads (:class:`client.team.Team`)."""

    @property
    def size(self) -> int:
        """Devices, the leading one included; at least two."""

    def begin(self, module: StageModule) -> None:
        """Give every device the module as it stands, before the first step of a local update.

        Raises:
            ConfigError: its network mixes the images of a batch, which devices do not share.
            MachineError: a device cannot be had, or was lost.
        """

    def gradients(self, module: StageModule, parts: Sequence[Part], precision: str) -> Tensor:
        """The batch's mean loss; its gradient is left in the module's parameters.

        Args:
            module: that of :meth:`begin`, with whatever weights it has now.
            parts: one for each device, the leading one's first.
            precision: ``float32`` or ``bfloat16``.

        Raises:
            MachineError: a device was lost, or its memory does not suffice.
        """

    def summed(self, module: StageModule, chunks: Iterator[Any], bound: float) -> dict[str, Tensor]:
        """Sum of the units' clipped gradients (:func:`fed_diffmic.privacy.ghost.sum.summed`), without noise.

        Args:
            module: that of :meth:`begin`.
            chunks: of whole units, each for one device.
            bound: no unit's gradient is longer.

        Raises:
            MachineError: a device was lost, or its memory does not suffice.
        """


def part_loss(module: StageModule, part: Part) -> Tensor:
    """A device's share of the mean loss of the whole batch (scalar)."""
    inputs = module.inputs(part.inputs) if isinstance(part.inputs, Tensor) else part.inputs
    return module.losses(Batch(inputs, part.labels, part.offset), part.draws).sum() / part.whole


def whole(module: StageModule, inputs: Any, labels: Tensor, offset: Tensor | None, generator: torch.Generator) -> Part:
    """A whole batch, to be cut; it draws what :meth:`StageModule.loss` would draw for it."""
    return Part(inputs, labels, module.draws(len(labels), generator, labels.device), offset, len(labels))


def cut(part: Part, count: int) -> list[Part]:
    """Consecutive parts of nearly equal size, the larger ones first; the last ones are empty where images are few."""
    rows = [torch.from_numpy(index).to(part.labels.device) for index in np.array_split(np.arange(len(part)), count)]
    return [
        Part(taken(part.inputs, of), part.labels[of], tuple(drawn[of] for drawn in part.draws), part.offset, part.whole)
        for of in rows
    ]


def taken(inputs: Any, rows: Tensor) -> Any:
    """Some rows of images, or of every column of features."""
    return inputs[rows] if isinstance(inputs, Tensor) else type(inputs)(*(column[rows] for column in inputs))
