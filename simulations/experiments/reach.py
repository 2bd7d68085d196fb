"""What a method had sent when it was nearly as good as it would become."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

SHARE = 0.97
METRIC = "auroc_macro"


def bytes_to_reach(history: Sequence[Mapping[str, Any]], share: float = SHARE) -> float:
    """Tensor bytes, both ways, of a stage's rounds up to the first that is good enough.

    Good enough is a mean validation macro AUROC of at least ``share`` of that of the last round that was judged. The
    result is always compared within one experiment: it says nothing of a method whose last round is a bad one.

    Args:
        history: rounds of a stage, with ``bytes_sent`` and ``mean``.
        share: of the last round's.

    Returns:
        bytes; ``nan`` where no round was judged.
    """
    said = [row["mean"].get(METRIC, math.nan) for row in history]
    judged = [value for value in said if not math.isnan(value)]
    if not judged:
        return math.nan
    first = next(place for place, value in enumerate(said) if value >= share * judged[-1])
    return float(sum(row["bytes_sent"] for row in history[: first + 1]))


def mean_bytes_to_reach(summaries: Iterable[Mapping[str, Any]]) -> float:
    """Mean over runs, each by its last stage; ``nan`` where one of them has no answer."""
    found = [bytes_to_reach(s["stages"][s["final_stage"]]["history"]) for s in summaries if "stages" in s]
    return float(np.mean(found)) if found else math.nan
