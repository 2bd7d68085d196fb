"""What a private site says of its privacy with each update: JSON of fixed fields, the site's own word.

The coordinator cannot check it (noise is what cannot be seen from outside); it is for the run's report.
"""

from __future__ import annotations

import json
import math
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
OUTSIDE = ("validation", "units", "hyperparameters", "unprotected")
"""What may be listed as outside the guarantee: metrics over validation images, the number of units, settings that were
chosen by looking at these data, stages that trained without privacy."""


def claim_text(
    *,
    unit: str,
    delta: float,
    epsilon_run: float,
    epsilon_total: float,
    budget: float,
    guarantee: bool,
    outside: list[str],
) -> str:
    """The claim as it crosses. An infinite epsilon crosses as no guarantee and -1."""
    run, total = (-1.0 if math.isinf(e) else float(e) for e in (epsilon_run, epsilon_total))
    sound = guarantee and min(run, total) >= 0
    value = {"unit": unit, "delta": float(delta), "epsilon_run": run, "epsilon_total": total, "budget": float(budget)}
    return json.dumps({**value, "guarantee": sound, "outside": sorted(outside)}, sort_keys=True, allow_nan=False)


def parse_claim(text: str) -> dict[str, Any]:
    """Inverse of :func:`claim_text`; empty for what is none."""
    try:
        value = json.loads(text) if text and len(text) < 2000 else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        return {}
    if any(type(value[name]) is not kind for name, kind in FIELDS.items()):
        return {}
    numbers = [value[name] for name, kind in FIELDS.items() if kind is float]
    known = value["unit"] in ("image", "patient") and all(item in OUTSIDE for item in value["outside"])
    return value if known and all(map(math.isfinite, numbers)) else {}
