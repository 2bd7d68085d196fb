"""Reports without pictures, for whole runs that ask nothing of them: drawing takes a fifth of a small run's time.

Every figure is still made; what is left out is writing it as SVG, which ``tests/reporting`` and the run of
``tests/simulations/test_run.py`` do.
"""

from __future__ import annotations

import pytest


def undraw(patch: pytest.MonkeyPatch) -> None:
    """Every picture of a report is empty until the patch is undone."""
    patch.setattr("fed_diffmic.reporting.plots.data_uri", lambda drawing: "data:,")
