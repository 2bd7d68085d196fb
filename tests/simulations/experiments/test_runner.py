"""Running cells: nothing twice, after a kill the same table bit for bit, failures named, several processes at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fed_diffmic.cli import main
from fed_diffmic.errors import UsageError
from simulations.experiments.definition import load_experiment
from simulations.experiments.gather import sections
from simulations.experiments.runner import run_experiment
from simulations.experiments.table import tidy_table, write_table
from tests.simulations.test_external import table_of as table_of_images

pytestmark = pytest.mark.timeout(900)  # several runs each, on a machine that may be busy
TWO = "axes.method=fedavg,ditto"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawn):
    from tests.simulations.experiments.conftest import TEXT

    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(TEXT)
    found = load_experiment(str(folder / "small.yaml"), [*drawn, TWO])
    assert run_experiment(found, folder / "out").failed == {}
    write_table(folder / "out")
    return folder


def table_of(out: Path) -> bytes:
    return (out / "results.csv").read_bytes()


def test_the_table_holds_every_figure_of_every_cell(finished):
    table = tidy_table(finished / "out")
    assert list(table.columns)[:5] == ["cell", "seed", "method", "arm", "site"]
    assert set(table["cell"]) == {f"seed-{s}_method-{m}" for s in (1, 2) for m in ("fedavg", "ditto")}
    assert set(table["arm"]) == {"federated", "local", "pooled"}
    summary = json.loads((finished / "out/cells/seed-2_method-ditto/summary.json").read_text())
    row = table.query(
        "cell == 'seed-2_method-ditto' and site == 'site-1' and split == 'test' and metric == 'auroc_macro'"
    )
    assert row["value"].tolist() == [summary["sites"]["site-1"]["test"]["auroc_macro"]["value"]]
    assert row["n"].tolist() == [summary["sites"]["site-1"]["n_test"]]


def test_run_again_nothing_is_run_and_the_table_is_the_same(finished, drawn, monkeypatch):
    before = table_of(finished / "out")
    monkeypatch.setattr("simulations.run.simulate", lambda *a, **k: pytest.fail("a finished cell was run"))
    found = load_experiment(str(finished / "small.yaml"), [*drawn, TWO])
    assert run_experiment(found, finished / "out").failed == {}
    write_table(finished / "out")
    assert table_of(finished / "out") == before


@pytest.mark.slow
def test_killed_and_continued_in_two_processes_the_table_is_the_same_bit_for_bit(finished, tmp_path, drawn):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fed_diffmic.cli", "experiment", "run", str(finished / "small.yaml")]
    command += ["--out", str(out), "axes.seed=2", TWO, *drawn]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 400
    while time.monotonic() < until and not list(out.glob("cells/*method-ditto/checkpoints/state.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    done = [p.parent.name for p in out.glob("cells/*/summary.json")]
    assert done == ["seed-2_method-fedavg"]
    assert main([*command[3:], "--jobs", "2"]) == 0
    whole = table_of(finished / "out").decode().splitlines(keepends=True)
    assert table_of(out).decode() == "".join([whole[0], *(row for row in whole if row.startswith("seed-2_"))])
    assert not list(out.glob("cells/*/failed.json"))


def test_a_failed_cell_is_named_does_not_stop_the_rest_and_is_tried_again(experiment_file, tmp_path, drawn, capsys):
    text = (
        experiment_file()
        .read_text()
        .replace("fedavg: [strategy=fedavg,", "fedavg: [strategy=krum, strategy.krum_keep=2,")
    )
    text = text.replace("scaffold: [strategy=scaffold]", "scaffold: [strategy=fedavg]")
    path, out = experiment_file(text), tmp_path / "out"
    assert main(["experiment", "run", str(path), "--out", str(out), "axes.seed=1", *drawn]) == 5
    said = capsys.readouterr().out
    assert "failed: seed-1_method-fedavg: strategy=krum" in said and "needs 3 updates; 2 came" in said
    assert "2 of 3 cells have metrics" in said and str(out / "report.md") in said
    assert "strategy.krum_keep" in said.partition("failed: seed-1_method-fedavg: ")[2].splitlines()[1]  # what to do
    failed = json.loads((out / "cells/seed-1_method-fedavg/failed.json").read_text())
    assert failed["code"] == "FD006" and "krum_keep" in failed["remedy"]
    assert main(["experiment", "run", str(path), "--out", str(out), "axes.seed=1", *drawn]) == 5
    assert capsys.readouterr().out.count("] seed-1") == 2  # the failed one alone, and that it failed again


def test_without_a_whole_seed_it_is_said_what_is_missing_and_a_failure_stays_one(
    experiment_file, tmp_path, drawn, monkeypatch, capsys
):
    """Two of three folds are there: no report yet; the exit code is that of a cell that failed, not of a mistake."""
    from simulations.run import simulate

    def stumble(config, resume):
        if config.partition.fold == 1:
            raise UsageError("a cause", "a remedy")
        return simulate(config, resume=resume)

    monkeypatch.setattr("simulations.run.simulate", stumble)
    text = experiment_file().read_text().replace("seed: [1, 2]", "seed: [1]\n  fold: 3").replace("rounds=3", "rounds=1")
    command = [
        "experiment",
        "run",
        str(experiment_file(text)),
        "--out",
        str(tmp_path / "out"),
        "axes.method=ditto",
        *drawn,
    ]
    assert main(command) == 5
    said = capsys.readouterr().out
    assert (
        "2 of 3 cells have metrics\nno report: no seed is whole yet; not there: seed 1 method ditto (fold 1 of 3)"
        in said
    )
    assert main(["experiment", "report", str(tmp_path / "out")]) == 2
    assert "(fold 1 of 3)" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("simulations.experiments.compare.LEAST_POSITIVES", 2)
    assert main(command) == 0 and (tmp_path / "out" / "report.md").exists()


def test_cells_of_data_that_changed_in_between_are_refused_and_go_on_when_they_are_back(
    experiment_file, tmp_path, monkeypatch, capsys
):
    """A row less, or a label mended, after the first method's cells: their rivals would be trained on other images."""
    table = table_of_images(tmp_path, "own", count=60, seed=1) / "manifest.csv"
    text = experiment_file().read_text().replace("rounds=3", "rounds=1")
    out = tmp_path / "out"
    command = ["experiment", "run", str(experiment_file(text)), "--out", str(out), "axes.seed=1"]
    command += ["dataset=table", f"dataset.root={table}", "dataset.modality=fundus", "baselines=[]"]
    command += [f"dataset.cache_dir={tmp_path / 'cache'}"]
    assert main([*command, "axes.method=fedavg"]) == 0
    before = table.read_bytes()
    lines = before.splitlines(keepends=True)
    table.write_bytes(b"".join(lines[:-1]))
    capsys.readouterr()
    assert main(command) == 5
    said = capsys.readouterr().out
    assert "the data changed since seed-1_method-fedavg was begun: 1 image(s) fewer" in said and "Put the table" in said
    assert not (out / "cells" / "seed-1_method-scaffold" / "config.yaml").exists()
    table.write_bytes(before)
    assert main(command) == 0 and "3 of 3 cells have metrics" in capsys.readouterr().out


def test_what_no_cell_could_begin_with_is_refused_once_and_leaves_nothing(experiment_file, tmp_path, capsys):
    out, nowhere = tmp_path / "out", f"dataset.root={tmp_path / 'nowhere'}"
    assert main(["experiment", "run", str(experiment_file()), "--out", str(out), "dataset=ham10000", nowhere]) == 2
    said = capsys.readouterr()
    assert (said.out + said.err).count(f"{nowhere} is not allowed") == 1 and not out.exists()


def test_cells_that_failed_for_one_reason_are_told_together(experiment_file, drawn, tmp_path, monkeypatch, capsys):
    def simulate(config, resume):
        raise ValueError("unforeseen") if config.strategy.name == "fedavg" else UsageError("a cause", "a remedy")

    monkeypatch.setattr("simulations.run.simulate", simulate)
    out = tmp_path / "out"
    assert main(["experiment", "run", str(experiment_file()), "--out", str(out), *drawn, TWO]) == 5
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if not line.startswith("[")]
    assert said == [
        "failed: seed-1_method-fedavg, seed-2_method-fedavg: ValueError: unforeseen",
        "failed.json in the cell's folder says where.",
        "failed: seed-1_method-ditto, seed-2_method-ditto: a cause",
        "a remedy",
        "0 of 4 cells have metrics",
    ]


def test_a_cell_begun_with_other_settings_is_not_mixed_in(finished, drawn):
    found = load_experiment(str(finished / "small.yaml"), [*drawn, "stages.plain.lr=0.5"])
    with pytest.raises(UsageError, match="was begun with other settings"):
        run_experiment(found, finished / "out")


def test_mistakes_on_the_command_line(finished, tmp_path, capsys):
    assert main(["experiment", "report", str(tmp_path)]) == 2
    assert "holds no experiment" in capsys.readouterr().err
    assert main(["experiment", "run", "nothing", "--out", str(tmp_path / "x")]) == 2
    assert "ham10000-linear" in capsys.readouterr().err
    assert main(["experiment", "run", "x.yaml", "--out", str(tmp_path), "--jobs", "-1"]) == 2
    assert main(["experiment", "list"]) == 0
    assert "ham10000-linear" in capsys.readouterr().out
    assert main(["strategies"]) == 0
    assert "SCAFFOLD (Karimireddy et al. 2020)" in capsys.readouterr().out


def test_the_report_says_what_the_cells_say(finished, monkeypatch):
    monkeypatch.setattr("simulations.experiments.compare.LEAST_POSITIVES", 2)  # a few test images a site
    assert main(["experiment", "report", str(finished / "out")]) == 0
    text = (finished / "out" / "report.md").read_text()
    (section,) = sections(finished / "out")
    assert section.seeds == ("1", "2") and section.methods == ["fedavg", "ditto", "local", "pooled"]
    values = section.values["ditto", "mean over sites", "auroc_macro"]
    assert f"| ditto | {values.mean():.3f} ({values.std(ddof=1):.3f}) |" in text
    for name in ("gain-auroc_macro", "worst-balanced_accuracy", "ranks-auroc_macro", "convergence-round"):
        assert (finished / "out" / "plots" / f"1-{name}.svg").read_text().startswith("<?xml")
    assert "\\begin{tabular}" in (finished / "out" / "report.tex").read_text()
    again = text
    assert main(["experiment", "report", str(finished / "out")]) == 0
    assert (finished / "out" / "report.md").read_text() == again
