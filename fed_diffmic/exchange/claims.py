"""What a private site says of its privacy with each update: JSON of fixed fields, the site's own word.

The coordinator cannot check it (noise is what cannot be seen from outside); it is for the run's report.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

FIELDS = {
    "unit": str,
    "delta": float,
    "epsilon_run": float,
    "epsilon_total": float,
    "budget": float,
    "guarantee": bool,
    "outside": list,
}
SHARED = {"honest_sites": int, "alone_run": float, "alone_total": float, "budget_alone": float}
"""Fields of a claim that rests on other sites' noise: how many others are taken to be honest, and the same epsilons if
none is."""
OUTSIDE = ("validation", "units", "hyperparameters", "unprotected")
"""What may be listed as outside the guarantee: metrics over validation images, the number of units, settings that were
chosen by looking at these data, stages that trained without privacy."""
WORDS = {
    "validation": "metrics over its validation and test images (by which a round was chosen, probabilities were "
    "calibrated and the model is judged)",
    "units": "the number of its training units, from which the sample rate follows",
    "hyperparameters": "settings that were chosen by looking at these data",
    "unprotected": "stages that trained on the same data without privacy",
}
"""The same in words."""


@dataclass(frozen=True)
class Alone:
    """What holds if no other site adds noise.

    Attributes:
        honest_sites: how many others the claim itself takes to be honest.
        epsilon_run, epsilon_total, budget: as of the claim.
    """

    honest_sites: int
    epsilon_run: float
    epsilon_total: float
    budget: float


def claim_text(
    *,
    unit: str,
    delta: float,
    epsilon_run: float,
    epsilon_total: float,
    budget: float,
    guarantee: bool,
    outside: list[str],
    alone: Alone | None = None,
) -> str:
    """The claim as it crosses. An infinite epsilon crosses as no guarantee and -1.

    Args:
        alone: of a claim that rests on others' noise.
    """
    run, total = (-1.0 if math.isinf(e) else float(e) for e in (epsilon_run, epsilon_total))
    sound = guarantee and min(run, total) >= 0
    value: dict[str, Any] = {"unit": unit, "delta": float(delta), "epsilon_run": run, "epsilon_total": total}
    value["budget"] = float(budget)
    if alone is not None:
        apart = (-1.0 if math.isinf(e) else float(e) for e in (alone.epsilon_run, alone.epsilon_total, alone.budget))
        value |= dict(zip(SHARED, (alone.honest_sites, *apart), strict=True))
    return json.dumps({**value, "guarantee": sound, "outside": sorted(outside)}, sort_keys=True, allow_nan=False)


def parse_claim(text: str) -> dict[str, Any]:
    """Inverse of :func:`claim_text`; empty for what is none."""
    try:
        value = json.loads(text) if text and len(text) < 2000 else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    fields = FIELDS | SHARED if set(value) & set(SHARED) else FIELDS
    if set(value) != set(fields) or any(type(value[name]) is not kind for name, kind in fields.items()):
        return {}
    numbers = [value[name] for name, kind in fields.items() if kind is float]
    known = value["unit"] in ("image", "patient") and all(item in OUTSIDE for item in value["outside"])
    return value if known and all(map(math.isfinite, numbers)) else {}
