"""Packages from outside, experiments' folders, the working folder and memory: as the message says, it works."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fed_diffmic import console
from fed_diffmic.config.choices import composed
from fed_diffmic.config.compose import compose
from fed_diffmic.files import load_tensors, save_tensors, write_json
from fed_diffmic.inference import predictions
from simulations.experiments import compare, folds
from simulations.experiments.definition import load_experiment
from simulations.experiments.folds import folded_section, out_of_fold
from simulations.experiments.report import write_experiment_report
from simulations.experiments.runner import prepare, read_index
from tests import plugin_package
from tests.inference.tiny import draw_images, write_tiny_run
from tests.remedies.places import remedy_in, tries
from tests.remedies.test_commands import Reached
from tests.simulations.experiments import test_folds
from tests.test_plugins import forget

OWNERS, PLUGINS = "fed_diffmic/config/owners.py::", "fed_diffmic/config/plugins.py::_load | "
FOLDS, RUNNER = "simulations/experiments/folds.py::", "simulations/experiments/runner.py::"
OPTION = 'share: float = option(0.5, "part of the way that a round goes", gt=0, le=1)'
ENTERED = '@register_algorithm("halfway", Options'


@pytest.fixture
def packages(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where ``pip`` puts packages."""
    folder = elsewhere / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    forget()
    composed.cache_clear()


@tries(f"{OWNERS}Owner.flat_values", f"{OWNERS}beside_flat", f"{PLUGINS}Uninstall al", f"{PLUGINS}{{remedy}}")
def test_a_package_that_is_broken_or_there_twice(packages, monkeypatch) -> None:
    text = plugin_package.files_of_the_page()["fed_example/halfway.py"]

    def installed(changed: str = text, name: str = "fed-example") -> None:
        uninstalled(name)
        plugin_package.install(packages, {"fed_example/halfway.py": changed}, {"name": name})

    def uninstalled(name: str) -> None:
        forget()
        composed.cache_clear()  # as in a program that starts anew
        for path in packages.glob(f"{name.replace('-', '_')}*"):
            shutil.rmtree(path)
        importlib.invalidate_caches()

    def chosen() -> str:
        return compose(None, ["strategy=halfway"]).strategy.name

    for broken in ("raise RuntimeError\n", "# registers nothing\n"):
        installed(broken)
        [package] = remedy_in(chosen, r"Repair the package or uninstall it: pip uninstall (\S+)").groups()
        uninstalled(package)
        assert compose(None, ["strategy=fedavg"])
        installed()
        assert chosen() == "halfway"
    installed(text.replace(OPTION, "mu: float = option(1.0, 'mine', ge=0, le=1)"))
    remedy_in(chosen, r"an option of another name: strategy\.mu is a setting already")
    installed(text.replace(OPTION, OPTION.replace("share", "my_mu")).replace(").share", ").my_mu"))
    assert chosen() == "halfway"
    installed(text.replace(ENTERED, f"{ENTERED}, colour=3"))
    [known] = remedy_in(chosen, r"allowed: one of (\w+), .*, where halfway is registered").groups()
    installed(text.replace(ENTERED, f"{ENTERED}, {known}='equal'"))
    assert getattr(compose(None, ["strategy=halfway"]).strategy, known) == "equal"
    installed()
    plugin_package.install(packages, None, {"name": "fed-other"})
    remedy_in(chosen, "fed-example and fed-other do.*Uninstall all but one")
    uninstalled("fed-other")
    assert chosen() == "halfway"


@tries(
    f"{FOLDS}out_of_fold | Run the experiment",
    f"{FOLDS}out_of_fold | The table, or",
    "simulations/experiments/compare.py::check_same_images",
    f"{RUNNER}read_index",
    "simulations/experiments/report.py::write_experiment_report",
)
def test_folders_of_experiments(monkeypatch) -> None:
    monkeypatch.setattr(test_folds, "IMAGES", {"s": 90, "t": 60})
    monkeypatch.setattr(folds, "RESAMPLES", 200)
    monkeypatch.setattr(compare, "LEAST_POSITIVES", 2)
    out = Path("out")
    remedy_in(lambda: read_index(out), "Give the folder of `fed-diffmic experiment run --out`")
    places = [{"seed": str(seed), "fold": str(fold), "method": "m"} for seed in (1, 2) for fold in range(3)]
    cells = [{"name": f"{place['seed']}-{place['fold']}", "place": place, "digest": ""} for place in places]
    out.mkdir()
    write_json(
        out / "experiment.json",
        {"experiment": "x", "about": "y", "axes": ["seed", "fold", "method"], "cells": cells},
    )
    read_index(out)
    remedy_in(lambda: write_experiment_report(out), "`fed-diffmic experiment run` does what is missing")
    runs = test_folds.write_runs(out / "cells", external=False)

    def reached(*arguments: object) -> None:
        raise Reached

    monkeypatch.setattr("simulations.experiments.report.write_table", reached)
    with pytest.raises(Reached):
        write_experiment_report(out)
    others = test_folds.write_runs(Path("others"), external=False, anew=True)
    remedy_in(lambda: folded_section({}, {"m": runs["m"], "n": others["m"]}, 3), "Methods share dataset and partition")
    folded_section({}, {"m": runs["m"], "n": runs["m"]}, 3)
    older = runs["m"]["1"][0] / "predictions.safetensors"
    whole = load_tensors(older)
    save_tensors(older, {name: value for name, value in whole.items() if not name.endswith("|keys")})
    remedy_in(lambda: out_of_fold([older.parent]), "Run the experiment again")
    save_tensors(older, whole)
    out_of_fold([older.parent])
    remedy_in(lambda: out_of_fold([older.parent] * 2), "changed between the folds: run them anew in another --out")
    out_of_fold(runs["m"]["1"])


@tries(f"{RUNNER}prepare | Choose anoth")
def test_an_experiment_with_other_settings() -> None:
    def defined(seed: int) -> object:
        Path("study.yaml").write_text(f"settings: [run.bootstrap={seed}]\naxes: {{seed: [1]}}\n")
        return load_experiment("study.yaml", [])

    prepare(defined(0), Path("out"))
    for cell in read_index(Path("out"))["cells"]:
        (Path("out/cells") / cell["name"] / "config.yaml").touch()
    [option] = remedy_in(lambda: prepare(defined(9), Path("out")), r"Choose another (--out) for").groups()
    prepare(defined(9), Path("another"))
    prepare(defined(0), Path("out"))
    assert option == "--out"


@tries("fed_diffmic/console.py::check_working_folder", "fed_diffmic/console.py::_machine_error | Make stages.")
def test_a_folder_that_is_gone_and_memory_that_is_short(says, works, elsewhere, monkeypatch, capsys) -> None:
    (elsewhere / "gone").mkdir()
    os.chdir("gone")
    (elsewhere / "gone").rmdir()
    assert "Change to a folder that exists, and try again" in says("options", "model")
    os.chdir(elsewhere)
    works("options", "model")

    def trained(*settings: str) -> int:
        config = compose(None, ["model=tiny", *settings])
        sizes = (config.stages.guidance.batch_size, config.model.image_side, config.model.latent)
        if all(size >= usual for size, usual in zip(sizes, before, strict=True)):
            raise MemoryError
        return 0

    usual = compose(None, ["model=tiny"])
    before = (usual.stages.guidance.batch_size, usual.model.image_side, usual.model.latent)
    capsys.readouterr()
    assert console.run_command(trained) == 6
    named = re.search(r"Make (\S+), (\S+) or (\S+) smaller", capsys.readouterr().err).groups()
    for key, size in zip(named, before, strict=True):
        assert (
            console.run_command(lambda key=key, size=size: trained(f"{key.replace('*', 'guidance')}={size // 2}")) == 0
        )


@tries("fed_diffmic/commands/use.py::_enough_memory")
def test_memory_for_predictions(says, works, monkeypatch) -> None:
    write_tiny_run(Path("run"))
    draw_images(Path("images"), 3)
    usual = predictions.decoded_files

    def tight(files: object, side: int, batch: int, bad: object) -> object:
        if batch > 1:
            raise MemoryError
        return usual(files, side, batch, bad)

    monkeypatch.setattr(predictions, "decoded_files", tight)
    typed = ("predict", "--run", "run", "--csv", "found.csv", "images")
    [option] = re.search(r"Give a smaller (--\w+),", says(*typed)).groups()
    works(*typed, option, "1")
