"""What a diffusion head is held against: the same two networks without diffusion (``model.denoiser=classifier``).

The guidance network stays frozen; the image prior's encoders, projections and fusion are those of the full model and
are trained as long, with a linear classifier on the prior in the head's place. With ``stages.diffusion.blend`` the
calibration mixes the two networks' logits: a logarithmic opinion pool of an ordinary ensemble.
"""

from __future__ import annotations

from typing import Any

import torch

from fed_diffmic.models.diffmic import Features
from fed_diffmic.training.guided import GuidedStage
from fed_diffmic.training.losses import classification_losses
from fed_diffmic.training.stage import Batch


class EnsembleStage(GuidedStage):
    """A classifier on the image prior, beside the frozen guidance network."""

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy of the classifier's own logits."""
        return self.losses(batch, ()).mean()

    def losses(self, batch: Batch, draws: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Cross-entropy of each image; nothing is random.

        With ``loss=balanced`` the share ``stages.diffusion.balance`` of the site's prior is taken out (Menon et al.
        2021, "Long-tail learning via logit adjustment", their tau), which is what the calibration gives back.
        """
        logits = self.network.classify(batch.inputs)
        offset = None if batch.offset is None else self.spec.stages.diffusion.balance * batch.offset
        return classification_losses(logits, batch.labels, self.spec.task, offset)

    def scores(self, inputs: Any, starts: torch.Tensor) -> torch.Tensor:
        """The logits; with ``stages.diffusion.blend`` the guidance network's are the second score."""
        return self._mixed(self.network.classify(inputs), inputs)

    def opinions(
        self, inputs: Any, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Scores, the classifier's probabilities as one prediction, and the guidance network's logits."""
        logits = self.network.classify(inputs)
        several = self.spec.task == "multilabel"
        own = torch.sigmoid(logits) if several else torch.softmax(logits, dim=1)
        return self._mixed(logits, inputs), own.unsqueeze(1), inputs.fused

    def _mixed(self, logits: torch.Tensor, inputs: Features) -> torch.Tensor:
        return torch.stack([logits, inputs.fused.to(logits.dtype)], dim=1) if self.blended else logits
