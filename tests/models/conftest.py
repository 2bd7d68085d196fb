"""A model small enough for a test of a few milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fed_diffmic.config.simulation import ModelConfig

TINY = "test_resnet"


@pytest.fixture
def tiny() -> Callable[..., ModelConfig]:
    """Build the smallest configuration, with changes by keyword."""

    def build(**changes: object) -> ModelConfig:
        values: dict[str, object] = {
            "name": "tiny",
            "image_side": 64,
            "regions": 4,
            "crop": 16,
            "latent": 32,
            "feature_stride": 16,
            "encoder_norm": "train",
            "guidance_backbone": TINY,
            "local_backbone": TINY,
            "prior_backbone": TINY,
            "region_backbone": TINY,
        }
        return ModelConfig(**values | changes)  # type: ignore[arg-type]

    return build
