"""The baseline: a plain fine-tuned classifier on the guidance network's backbone, whole as timm made it."""

from __future__ import annotations

from torch import Tensor, nn

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.centre import FeatureCentre
from fed_diffmic.models.checks import check_plain, plain_arguments


class PlainClassifier(nn.Module):
    """A whole timm backbone with its own pooling and head layers, and a new linear classifier.

    Args:
        encoder: made with ``whole=True``.
        num_classes: ``C``.
        centred: scale and centre the encoder's features (:class:`FeatureCentre`); the encoder must be frozen.
    """

    def __init__(self, encoder: Encoder, num_classes: int, *, centred: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.centre = FeatureCentre(encoder.width) if centred else None
        self.classifier = nn.Linear(encoder.width, num_classes)

    def freeze_encoder(self) -> None:
        """Freeze the encoder for good (``stages.plain.encoders=frozen``): a linear classifier on its features."""
        self.encoder.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, H)`` to logits ``(B, C)``."""
        return self.classify(self.encoder(images))

    def classify(self, features: Tensor) -> Tensor:
        """The encoder's features ``(B, W)`` to logits ``(B, C)``."""
        logits: Tensor = self.classifier(features if self.centre is None else self.centre(features))
        return logits


def build_plain(cfg: ModelConfig, num_classes: int) -> PlainClassifier:
    """The baseline on ``model.guidance_backbone`` with fresh weights (torch's global generator: seed it first).

    Normalisation and frozen blocks are those of the model it is compared with.

    Raises:
        ConfigError: the configuration describes no possible network.
    """
    check_plain(cfg)
    return PlainClassifier(
        Encoder(cfg.guidance_backbone, **plain_arguments(cfg)), num_classes, centred=cfg.features == "centred"
    )
