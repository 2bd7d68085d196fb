"""Who has a finished run's model, as its folder says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_diffmic.files import read_json

FILE = "delivery.json"


def lacking(run_dir: Path) -> list[str] | None:
    """Names of the sites that have not got a finished run's model; none: nobody was asked yet.

    Raises:
        ModelFileError: ``delivery.json`` is damaged.
    """
    sites = delivered(run_dir)
    return sorted(name for name, said in sites.items() if not said["has"]) if sites else None


def delivered(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Each site that was asked: whether it ``has`` the model, and ``why`` not; empty: nobody was asked.

    Raises:
        ModelFileError: ``delivery.json`` is damaged.
    """
    return dict(read_json(run_dir / FILE)["sites"]) if (run_dir / FILE).exists() else {}


def delivery_lines(sites: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who has the model and who has not, in sentences."""
    if not sites:
        return []
    has = [name for name, said in sorted(sites.items()) if said["has"]]
    lines = [f"The model is kept, verified, by {', '.join(has)}." if has else "No site keeps the model."]
    return lines + [f"{name} has not got it: {said['why']}." for name, said in sorted(sites.items()) if not said["has"]]
