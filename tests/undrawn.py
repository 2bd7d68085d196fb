"""Whole runs without what they ask nothing of: pictures in reports, and the same drawn images again for every run.

Every section of a report is still written and every figure but the examples' is still made; what is left out is
writing it as SVG, which ``tests/reporting`` and the run of ``tests/simulations/test_run.py`` do. Drawing images is
tested in ``tests/data/phantoms``.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest


def undraw(patch: pytest.MonkeyPatch) -> None:
    """Every picture of a report is empty until the patch is undone; those of examples take longest to make."""
    patch.setattr("fed_diffmic.reporting.plots.data_uri", lambda drawing: "data:,")
    patch.setattr("fed_diffmic.reporting.examples.example_plot", lambda examples, rows: None)


def draw_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Until the patch is undone a run's phantoms are a copy of those in ``folder``, drawn at the first request."""
    from fed_diffmic.data.phantoms import write_phantoms

    def write(out: Path, *request: Any, **more: Any) -> Path:
        kept = folder / hashlib.sha256(repr((request, sorted(more.items()))).encode()).hexdigest()
        if not out.exists():
            shutil.copytree(write_phantoms(kept, *request, **more), out)
        return write_phantoms(out, *request, **more)  # which looks whether it is what was asked for

    patch.setattr("simulations.sites.write_phantoms", write)
