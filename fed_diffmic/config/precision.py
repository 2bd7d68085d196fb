"""What local updates are computed in (``run.precision``): the key that coordinator and simulation have in common."""

from __future__ import annotations

from typing import Any

from fed_diffmic.config.fields import option
from fed_diffmic.errors import ConfigError

DEVICE, FLOAT32, BFLOAT16, AUTO = "device", "float32", "bfloat16", "auto"


def precision() -> Any:
    """``run.precision``."""
    return option(
        DEVICE,
        "what local updates compute in; weights, optimizer, clipping, losses and all that is sent are float32 in any "
        "case. device: bfloat16 on CUDA cards that have it, float32 elsewhere; auto: each site measures a step and "
        "takes bfloat16 where that is a tenth faster. Equal bits are promised for float32 or bfloat16 on one kind of "
        "machine",
        choices=(DEVICE, FLOAT32, BFLOAT16, AUTO),
        sparse=True,
    )


def check_private(asked: str) -> None:
    """Refuse what training with privacy does not do: gradients of single units are computed in float32.

    Raises:
        ConfigError: ``bfloat16`` was said.
    """
    if asked == BFLOAT16:
        raise ConfigError(
            "run.precision",
            asked,
            "float32, device or auto with privacy",
            "Updates with privacy are computed in float32, so that clipping is exact; choose run.precision=float32.",
        )
