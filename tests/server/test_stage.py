"""What surrounds a stage's rounds: where it starts, and the moving average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import save_tensors, tensors_digest
from fed_diffmic.training.stages import build_module, full_state
from server.stage import moving_average
from tests import toy


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_moving_average() -> None:
    first = {"w": np.array([1.0], np.float32), "n": np.array(1)}
    second = {"w": np.array([3.0], np.float32), "n": np.array(2)}
    assert moving_average({}, first, 0.0) == {}
    average = moving_average(moving_average({}, first, 0.75), second, 0.75)
    np.testing.assert_allclose(average["w"], [1.5])
    assert average["w"].dtype == np.float32
    assert average["n"] == 2


def test_no_rounds_and_a_file_use_the_file_as_given(tmp_path: Path) -> None:
    module = build_module(toy.toy_spec(), "guidance")
    given = {name: value + np.asarray(0.5, value.dtype) for name, value in full_state(module).items()}
    save_tensors(tmp_path / "given.safetensors", given)
    spec = toy.toy_spec(rounds=0, init=str(tmp_path / "given.safetensors"))
    grid, _ = toy.toy_grid(tmp_path)
    final = toy.short_run(tmp_path, grid, spec)
    assert final.digests["guidance"] == tensors_digest(given)
    assert final.history == []
    assert final.calibration["guidance"].n == 12


def test_a_file_that_does_not_fit_says_so(tmp_path: Path) -> None:
    save_tensors(tmp_path / "given.safetensors", {"head.weight": np.zeros((9, 9), np.float32)})
    grid, _ = toy.toy_grid(tmp_path)
    with pytest.raises(ModelFileError, match=r"stages\.guidance\.init"):
        toy.short_run(tmp_path, grid, toy.toy_spec(init=str(tmp_path / "given.safetensors")))


def test_a_file_with_what_is_no_number_is_refused_before_a_site_is_asked(tmp_path: Path) -> None:
    given = full_state(build_module(toy.toy_spec(), "guidance"))
    given["head.weight"] = np.full_like(given["head.weight"], np.nan)
    save_tensors(tmp_path / "given.safetensors", given)
    grid, _ = toy.toy_grid(tmp_path)
    with pytest.raises(ModelFileError, match=r"stages\.guidance\.init: 1 tensors are .*not a number \(head\.weight\)"):
        toy.short_run(tmp_path, grid, toy.toy_spec(init=str(tmp_path / "given.safetensors")))
    assert not (tmp_path / "sites").exists() or not list((tmp_path / "sites").rglob("updates/*"))
