"""What the coordinator's and the site's configuration both say of codecs: their names."""

from __future__ import annotations

from typing import Any

from fed_diffmic.config.fields import option

CODECS = ("float32", "bfloat16", "int8", "int4", "topk")


def codec() -> Any:
    """``strategy.codec``."""
    return option(
        "float32",
        "how weights and updates cross, both ways: float32 exactly; the others code differences and add what they "
        "leave out to the next (docs/exchange.md)",
        choices=CODECS,
    )


def topk_share() -> Any:
    """``strategy.topk_share``."""
    return option(0.05, "topk: share of each tensor's numbers that cross, those that changed most", gt=0, le=1)
