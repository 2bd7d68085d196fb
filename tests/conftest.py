"""Shared by all tests: quiet libraries, one thread, the folder of real data and its rule.

The rule: a test that asks for the fixture ``shared`` may be skipped only where ``FED_DIFFMIC_SHARED`` is
not set. Where it is set, a skip is a failure, so that a check on real data cannot vanish unseen.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

VARIABLE = "FED_DIFFMIC_SHARED"
CONSORTIUM = "tests/consortium/"

# The same examples on every machine, and no verdict by the clock.
hypothesis.settings.register_profile(
    "fed_diffmic",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a machine that pauses is no defect of a test
)
hypothesis.settings.load_profile("fed_diffmic")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file at a time for each worker, and all of ``tests/consortium`` for one of them.

    A consortium is a dozen processes with deadlines: two at once on two cores take each other's time to meet them.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneConsortium(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return CONSORTIUM if file.startswith(CONSORTIUM) else file

    return OneConsortium(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data; skips where there is none."""
    value = os.environ.get(VARIABLE)
    if not value:
        pytest.skip(f"{VARIABLE} is not set")
    folder = Path(value)
    assert (folder / "data").is_dir(), f"{VARIABLE} names a folder without data/"
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip of a test on real data into a failure where the real data are there."""
    report = yield
    asks = "shared" in getattr(item, "fixturenames", ())
    if asks and report.skipped and not hasattr(report, "wasxfail") and os.environ.get(VARIABLE):
        report.outcome = "failed"
        report.longrepr = f"skipped although {VARIABLE} is set: {report.longrepr}"
    return report
