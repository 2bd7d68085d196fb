"""What every stage is to the local update, to an evaluation and to privacy: a network with its loss and its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fed_diffmic.config.spec import RunSpec


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes:
        inputs: normalised images ``(B, 3, H, H)``, or :class:`Features` where they were computed once.
        labels: ``(B,)`` int64, or ``(B, C)`` float for multi-label.
        offset: the site's prior offset ``(C,)`` for the balanced loss, or none.
    """

    inputs: Any
    labels: torch.Tensor
    offset: torch.Tensor | None = None


class StageModule(nn.Module):
    """A network with the loss and the scores of one stage; parameters are the network's own.

    Args:
        spec: what is common to all sites.
        stage: ``guidance``, ``diffusion`` or ``plain``.
        network: what is trained.
    """

    #: whether inputs may be computed once a local update (nothing before them is trained)
    features_once = False
    #: whether no gradient reaches what :meth:`inputs` gives, though it depends on weights that are trained
    inputs_apart = False
    #: whether :meth:`scores` gives two for each class, whose share the calibration fits
    blended = False
    #: whether :meth:`scores` looks at the sampler's starts: drawing them costs more than a small network's scores
    sampled = False

    def __init__(self, spec: RunSpec, stage: str, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.stage = stage
        self.network = network

    def inputs(self, images: torch.Tensor) -> Any:
        """From normalised images to what :meth:`loss` and :meth:`scores` take."""
        return images

    def inputs_of(self, images: torch.Tensor, keys: np.ndarray) -> Any:
        """As :meth:`inputs`, of images with these numbers ``(B,)``: what is known of one of them may be used."""
        return self.inputs(images)

    def to_centre(self, inputs: Any) -> dict[str, torch.Tensor]:
        """What a centring round averages, before it has a mean: ``(B, W)`` by the mean's name, of a root mean square of
        at most 1; empty where the stage centres nothing."""
        return {}

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Mean loss of a batch (scalar)."""
        raise NotImplementedError

    def draws(self, count: int, generator: torch.Generator, device: torch.device | str) -> tuple[torch.Tensor, ...]:
        """What :meth:`losses` needs to be random for ``count`` images: tensors with ``count`` rows each."""
        return ()

    def losses(self, batch: Batch, draws: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Each image's loss ``(B,)``, a function of its arguments alone; :meth:`loss` is the mean for its own draws."""
        raise NotImplementedError

    def scores(self, inputs: Any, starts: torch.Tensor) -> torch.Tensor:
        """Scores ``(B, C)``, or two for each class ``(B, 2, C)`` (:attr:`blended`).

        Args:
            starts: ``(B, N, 2, C)`` uniform draws (the sampler's ``N`` starts, section 7); ``N`` is 0 where the stage
                is not :attr:`sampled`.
        """
        raise NotImplementedError

    def opinions(
        self, inputs: Any, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """:meth:`scores`, and what they were made of where that tells how unsure they are.

        Returns:
            scores; the head's prediction from each start, ``(B, N, C)`` near probabilities; and the logits ``(B, C)``
            of the guidance network, which is another opinion; none of the last two where there is one opinion.
        """
        return self.scores(inputs, starts), None, None
