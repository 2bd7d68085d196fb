"""Every place where an error is made that users meet has its remedy tried here, or is listed with a reason.

The list, ``untried.toml``, names those that no test tries. A new error that is in neither fails this test: try its
remedy, or say why it cannot be tried.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.remedies.places import FOLDER, TRIED, Place, named, places, untried

REASONS = ("another party", "a backup", "a machine", "people", "a run", "own code")
"""Why a remedy cannot be tried here; ``untried.toml`` explains each."""


def read_all() -> None:
    """Import every file of this folder, so that each says what it tries."""
    for path in sorted(Path(FOLDER).glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"remedies_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        if path.name != Path(__file__).name:
            spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_every_error_has_its_remedy_tried_or_a_reason() -> None:
    read_all()
    listed = untried()
    tried: set[Place] = {place for name in TRIED for place in named(name)}
    excused: set[Place] = {place for name in listed for place in named(name)}
    missing = [f"{place.spot} | {place.remedy}" for place in places() if place not in tried | excused]
    assert missing == [], "try these remedies, or say in untried.toml why they cannot be tried"
    both = sorted(name for name in listed if set(named(name)) <= tried)
    assert both == [], "these are tried: take them out of untried.toml"
    assert set(listed.values()) <= set(REASONS)
