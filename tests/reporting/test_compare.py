"""Runs side by side: only what was tested on the same images gets a difference, and the page says so."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fed_diffmic.cli import main
from fed_diffmic.errors import UsageError
from fed_diffmic.files import save_tensors
from fed_diffmic.reporting.compare import compared, read_runs, write_comparison
from fed_diffmic.reporting.events import EventLog
from fed_diffmic.reporting.view import with_interval
from fed_diffmic.training.comparison import difference
from tests.reporting.conftest import COUNTS, emit_run, predict
from tests.reporting.test_report import Parsed

SETTINGS = "seed: 3\nstrategy: {name: NAME, mu: MU}\nrun: {dir: DIR}\n"


def make_run(folder: Path, summary: dict[str, Any], signal: float, *, name: str = "fedavg", mu: float = 0.01) -> Path:
    """A finished run's folder with the federated model's predictions in it."""
    folder.mkdir()
    whole = {**copy.deepcopy(summary), "run": folder.name, "partition": {"digest": "d1"}}
    (folder / "summary.json").write_text(json.dumps(whole))
    text = SETTINGS.replace("NAME", name).replace("MU", str(mu)).replace("DIR", str(folder))
    (folder / "config.yaml").write_text(text)
    log = EventLog(folder / "events.jsonl")
    emit_run(log)
    log.close()
    tensors: dict[str, np.ndarray] = {}
    for site in COUNTS:
        scored = predict(site, folder.name, "test", summary["task"], signal)
        tensors[f"federated|{site}|probabilities"] = scored.probabilities.astype(np.float32)
        tensors[f"federated|{site}|decided"] = np.asarray(scored.decided)
        tensors[f"{site}|labels"] = np.asarray(scored.labels)
        tensors[f"{site}|groups"] = np.asarray(scored.groups)
    save_tensors(folder / "predictions.safetensors", tensors)
    return folder


@pytest.fixture
def folders(tmp_path: Path, summary: dict[str, Any]) -> tuple[Path, Path]:
    """A run and one that is plainly better, on the same test images."""
    return (
        make_run(tmp_path / "first", summary, 1.0),
        make_run(tmp_path / "better", summary, 3.0, name="fedprox", mu=0.1),
    )


def test_the_difference_is_that_of_the_runs_own_predictions(folders: tuple[Path, Path]) -> None:
    first, other = read_runs(folders)
    gap = compared(first, other, bootstrap=50)
    assert gap == difference(other.test, first.test, bootstrap=50, seed=3)
    assert gap is not None and gap["mean"]["auroc_macro"]["low"] > 0


def test_the_page_says_who_is_better_what_differs_and_repeats_the_numbers(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    runs = read_runs(folders)
    path = write_comparison(tmp_path / "out.html", runs)
    document = path.read_text(encoding="utf-8")
    parsed = Parsed(document)
    assert not parsed.open
    gap = compared(*runs)
    assert gap is not None
    wanted = with_interval(gap["mean"]["auroc_macro"], sign=True)
    assert f"better is better than first: macro AUROC {wanted}" in parsed.text
    assert "strategy.name fedavg fedprox" in parsed.text and "strategy.mu 0.01 0.1" in parsed.text
    assert "first guidance 6, diffusion 8 10 min 280 MB none" in parsed.text  # 310.2 and 290 seconds
    assert "run.dir" not in parsed.text  # where a run lies is not what it is
    assert str(tmp_path) not in document
    assert not re.search(r'(?:src|href)="(?!data:)', document)


def test_other_test_images_get_no_difference(folders: tuple[Path, Path], tmp_path: Path) -> None:
    summary = json.loads((folders[1] / "summary.json").read_text())
    summary["partition"]["digest"] = "d2"
    (folders[1] / "summary.json").write_text(json.dumps(summary))
    runs = read_runs(folders)
    assert compared(*runs) is None
    said = Parsed(write_comparison(tmp_path / "out.html", runs).read_text(encoding="utf-8")).text
    assert "were not tested on the same images" in said and "minus first" not in said


def test_other_labels_under_the_same_digest_get_no_difference(folders: tuple[Path, Path]) -> None:
    runs = read_runs(folders)
    site = next(iter(runs[1].test))
    labels = runs[1].test[site].labels
    labels[0] = (labels[0] + 1) % 7
    assert compared(*runs) is None


def test_a_run_without_groups_stands_beside_the_others_only(folders: tuple[Path, Path]) -> None:
    (folders[1] / "predictions.safetensors").unlink()
    first, other = read_runs(folders)
    assert other.test == {} and compared(first, other) is None


def test_runs_of_one_name_are_told_apart(folders: tuple[Path, Path]) -> None:
    assert [run.label for run in read_runs([folders[0], folders[0]])] == ["first (1)", "first (2)"]


def test_what_cannot_be_compared_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run is here"):
        read_runs([folders[0], tmp_path])
    with pytest.raises(UsageError, match="two runs or more"):
        write_comparison(tmp_path / "out.html", read_runs(folders[:1]))
    summary = json.loads((folders[1] / "summary.json").read_text())
    summary["classes"] = ["a", "b"]
    (folders[1] / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UsageError, match=r"classes \(a, b\) are not those of"):
        read_runs(folders)


def test_the_command_writes_both_pages(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(folders[0])]) == 0
    assert (folders[0] / "report.html").is_file()
    assert main(["report", str(folders[0]), "--compare", str(folders[1])]) == 0
    assert (folders[0] / "compare.html").is_file()
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(folders[0]), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "no finished run is here" in capsys.readouterr().err
    before = (folders[0] / "summary.json").read_bytes()
    other = folders[1] / "summary.json"
    kept = other.read_bytes()
    assert main(["report", str(folders[0]), "--compare", str(folders[1]), "--out", str(other)]) == 2
    assert "among the run's own files" in capsys.readouterr().err and other.read_bytes() == kept
    for out, said in ((folders[0], "is a folder"), (folders[0] / "summary.json", "among the run's own files")):
        assert main(["report", str(folders[0]), "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    assert (folders[0] / "summary.json").read_bytes() == before
