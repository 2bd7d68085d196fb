"""The folder of a simulated run."""

import os
import shutil
from pathlib import Path

import pytest

from simulations import folder as module
from simulations.folder import keep_trial


def write_trial(trial: Path, text: str, *, personal: bool) -> Path:
    (trial / "final").mkdir(parents=True)
    (trial / "final" / "model.json").write_text(text)
    if personal:
        (trial / "personal" / "plain").mkdir(parents=True)
        (trial / "personal" / "plain" / "a.safetensors").write_text(text)
    return trial


@pytest.mark.parametrize("links", [True, False])
def test_the_model_that_did_best_lies_in_the_runs_folder_whole(tmp_path: Path, monkeypatch, links: bool) -> None:
    if not links:

        def none(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(module.os, "link", none)
    first = write_trial(tmp_path / "lr-1", "first", personal=True)
    second = write_trial(tmp_path / "lr-3", "second", personal=False)
    keep_trial(first, tmp_path)
    part = Path("personal", "plain", "a.safetensors")
    assert (tmp_path / "final" / "model.json").read_text() == (tmp_path / part).read_text() == "first"
    assert os.path.samefile(first / part, tmp_path / part) is links
    keep_trial(second, tmp_path)  # chosen anew after an interruption
    assert (tmp_path / "final" / "model.json").read_text() == "second" and not (tmp_path / "personal").exists()
    assert (first / part).read_text() == "first", "what a trial left stays"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "lr-1", "lr-3"]


def test_what_an_interruption_left_is_in_nobodys_way(tmp_path: Path) -> None:
    trial = write_trial(tmp_path / "lr-1", "first", personal=True)
    shutil.copytree(trial / "final", tmp_path / ".final.part")
    (tmp_path / ".final.part" / "torn").touch()
    keep_trial(trial, tmp_path)
    assert [p.name for p in (tmp_path / "final").iterdir()] == ["model.json"]
    assert not (tmp_path / ".final.part").exists()
