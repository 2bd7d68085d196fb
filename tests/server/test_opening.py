"""A run that goes on: with the settings that it was started with, and no work done twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fed_diffmic.errors import ModelFileError
from fed_diffmic.release.final import load_final
from simulations.grid import InProcessGrid
from tests import toy


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_other_settings_are_refused_on_resume(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    toy.short_run(tmp_path, grid)
    with pytest.raises(ModelFileError, match=r"spec\.seed"):
        toy.short_run(tmp_path, grid, replace(toy.toy_spec(), seed=4))
    with pytest.raises(ModelFileError, match="stages"):
        toy.short_run(tmp_path, grid, stages=["guidance", "plain"])


def test_a_finished_run_is_loaded_without_asking_anyone(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    final = toy.short_run(tmp_path, grid)
    again = toy.short_run(tmp_path, InProcessGrid(toy.app, []))
    assert again.digests == final.digests == load_final(tmp_path).digests
