"""SIGKILL at the durable writes of a two-stage run, then resume: the same weights, bit for bit.

``kill_driver.py`` forks, kills and compares. The normal suite takes a spread of moments, with one driver for all
variants; every single moment is tried by the slow test.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")
VARIANTS = (
    "plain",
    "state",
    "recompute",
    "scaffold",
    "fedbn",
    "ditto",
    "int8",
    "topk",
    "int4",
    "one message",
    "one message, coded",
)


def drive(folder: Path, variant: str, stride: int, offset: int, timeout: float) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(DRIVER), str(folder / "kills"), variant, str(stride), str(offset)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


class Driver:
    """One process for several variants; its errors go to a file."""

    def __init__(self, folder: Path) -> None:
        self.errors = folder / "errors.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(DRIVER)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, folder: Path, variant: str, stride: int, offset: int) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder / "kills"), variant, stride, offset]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 280)
        line = self.process.stdout.readline() if ready else ""
        result = json.loads(line) if line else {"error": "no answer"}
        assert "error" not in result, (result, self.errors.read_text()[-3000:])
        return result


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    started = Driver(tmp_path_factory.mktemp("driver"))
    yield started
    started.process.kill()
    started.process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("variant", "stride", "offset"),
    [
        ("plain", 100, 11),
        ("state", 100, 5),
        ("recompute", 110, 29),
        ("scaffold", 130, 31),
        ("fedbn", 130, 53),
        ("ditto", 130, 67),
        ("int8", 170, 61),
        ("topk", 170, 19),
        ("one message", 150, 83),
        ("one message, coded", 190, 117),
        ("diffmic", 130, 77),
    ],
)
def test_killed_now_and_then_a_run_ends_the_same(
    tmp_path: Path, driver: Driver, variant: str, stride: int, offset: int
) -> None:
    result = driver.ask(tmp_path, variant, stride, offset)
    assert result["differing"] == []
    assert result["tried"] >= 2
    assert result["moments"] > 150


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_any_moment_a_run_ends_the_same(tmp_path: Path, variant: str) -> None:
    result = drive(tmp_path, variant, 1, 0, 3500)
    assert result["differing"] == []
    assert result["tried"] == result["moments"] > 150
