"""How far one site may move a run, as it is declared in the coordinator's configuration and in a simulation's."""

from __future__ import annotations

from typing import Any

from fed_diffmic.config.fields import option


def max_share(default: float) -> Any:
    """``run.max_share``."""
    return option(
        default,
        "largest share of one site, of three or more, in averages, class prior and means; below 1 the choice of the "
        "round and the calibration withstand one site too (docs/operations.md)",
        gt=0,
        le=1,
    )


def norm_rule(default: str) -> Any:
    """``run.norm_rule``."""
    return option(
        default,
        "an update larger than norm_multiple allows: take it as it is (off), make it smaller (clip), or go on without "
        "it (refuse)",
        choices=("off", "clip", "refuse"),
    )


def norm_multiple() -> Any:
    """``run.norm_multiple``."""
    return option(
        5.0,
        "largest L2 norm of a site's update, over the median of the round's (of three sites or more; parameters, "
        "statistics and the algorithm's own tensors each by themselves)",
        ge=1,
        le=1e6,
    )
