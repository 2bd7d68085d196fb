"""Keys of rounds that the coordinator's configuration and a simulation's have in common: bounds, patience, messages."""

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


def patience() -> Any:
    """``run.patience``."""
    return option(
        0,
        "early stopping: rounds in a row, none of them better than the stage's best one on validation, after which the "
        "stage ends; its best round is its result in any case; 0: all rounds of stages.*.rounds",
        ge=0,
        le=100_000,
    )


def exchanges(default: str) -> Any:
    """``run.exchanges``."""
    return option(
        default,
        "messages to a site and round: `two` (train, then evaluate) or `one` (a round's metrics are asked for with the "
        "next round's training: they come a round later, and the run comes to the same); `auto`: one, but two where "
        "updates are masked or noise is shared",
        choices=("auto", "one", "two"),
        sparse=True,
    )
