"""SIGKILL at the durable writes of a two-stage run, then resume: the same weights, bit for bit.

``kill_driver.py`` forks, kills and compares. The normal suite takes a spread of moments; every single
one is tried by the slow test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
def test_killed_now_and_then_a_run_ends_the_same(tmp_path: Path, variant: str, stride: int, offset: int) -> None:
    result = drive(tmp_path, variant, stride, offset, 280)
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
