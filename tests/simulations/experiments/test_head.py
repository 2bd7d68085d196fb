"""The yardstick on drawn images: what is trained once, what nobody sees, and tables that come from files."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml

from benchmarks.head import put
from fed_diffmic.config.compose import to_yaml
from fed_diffmic.errors import ConfigError, DataError, UsageError
from fed_diffmic.files import load_tensors, read_json
from fed_diffmic.training.guided import fold_of
from simulations.experiments import head as head_module
from simulations.experiments import head_metrics
from simulations.experiments.definition import SHIPPED, load_experiment
from simulations.experiments.head import run_head
from simulations.experiments.head_report import (
    Method,
    kind_of,
    methods_of,
    paired,
    report_lines,
    twin_of,
    verdict,
    write_head_report,
)
from simulations.sites import forget_sites
from tests.simulations.test_external import table_of

TEXT = """about: a small yardstick
settings:
  - dataset.phantom_images=96
  - dataset.modality=ultrasound
  - model=tiny
  - model.image_side=32
  - model.regions=2
  - model.crop=16
  - model.latent=16
  - model.prior_init=own
  - model.sampling_steps=2
  - model.sampling_starts=2
  - partition.sites=2
  - partition.min_images=6
  - stages=tiny
  - stages.guidance.rounds=1
  - stages.guidance.steps=3
  - stages.diffusion.rounds=1
  - stages.diffusion.steps=3
  - stages.diffusion.encoders=train
  - stages.diffusion.augment=false
  - stages.diffusion.blend=true
  - run.device=cpu
axes:
  seed: [1, 2]
  method:
    guidance: [stages.diffusion.rounds=0, stages.diffusion.blend=false]
    ensemble: [model.denoiser=classifier]
    chain: [model.denoiser=residual]
    mean: [model.denoiser=residual, model.sampling=mean]
"""
CROSSED = "    crossfit: [model.denoiser=residual, model.sampling=mean, stages.diffusion.crossfit=2]\n"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(head_metrics, "RESAMPLES", 50)


@pytest.fixture
def trainings(monkeypatch):
    """What every local update was given."""
    seen = []
    update = head_module.local_update

    def spy(module, train, algorithm, at, memory=None):
        seen.append((module.stage, module.spec, train, getattr(module, "table", None)))
        return update(module, train, algorithm, at, memory)

    monkeypatch.setattr(head_module, "local_update", spy)
    return seen


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("head")
    (folder / "small.yaml").write_text(TEXT)
    run_head(load_experiment(str(folder / "small.yaml"), drawn), folder / "out", test=True, say=lambda line: None)
    return folder


def test_a_machine_without_the_images_is_told_so_before_a_folder_is_made(experiment_file, tmp_path):
    found = load_experiment(str(experiment_file(TEXT)), ["dataset=ham10000", f"dataset.root={tmp_path / 'nowhere'}"])
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        run_head(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_networks_that_methods_share_are_trained_once_and_nothing_again(experiment_file, drawn, tmp_path, trainings):
    experiment = load_experiment(str(experiment_file(TEXT)), [*drawn, "axes.seed=1"])
    run_head(experiment, tmp_path / "out", say=lambda line: None)
    assert [(stage, spec.model.denoiser) for stage, spec, _, _ in trainings] == [
        ("guidance", "noise"),
        ("diffusion", "classifier"),
        ("diffusion", "residual"),  # chain and mean sample from the same weights
    ]
    assert not list((tmp_path / "out" / "cells").glob("*/test.safetensors"))  # nobody asked for it
    tables = [table for *_, table in trainings]
    assert tables[0] is None and tables[1] is tables[2] is not None
    run_head(experiment, tmp_path / "out", test=True, say=lambda line: None)
    assert len(trainings) == 3
    assert len(list((tmp_path / "out" / "cells").glob("*/test.safetensors"))) == 4


def test_labels_that_changed_in_between_are_refused(experiment_file, tmp_path, trainings):
    """The weights that are kept go by the images, not by their labels: the next method would be of other ones."""
    table = table_of(tmp_path, "own", count=60, seed=1) / "manifest.csv"
    own = [
        "dataset=table",
        f"dataset.root={table}",
        "dataset.modality=fundus",
        f"dataset.cache_dir={tmp_path / 'cache'}",
    ]
    experiment = load_experiment(str(experiment_file(TEXT)), [*own, "axes.seed=1"])
    first = replace(experiment, cells=experiment.cells[:1])
    run_head(first, tmp_path / "out", say=lambda line: None)
    before, count = table.read_text(), len(trainings)
    lines = before.splitlines()
    image, label = lines[1].split(",")
    table.write_text("\n".join([lines[0], f"{image},{(int(label) + 1) % 5}", *lines[2:]]))
    forget_sites()  # as another process would read it
    with pytest.raises(DataError, match="the data changed since this experiment was begun: 1 image"):
        run_head(experiment, tmp_path / "out", say=lambda line: None)
    assert len(trainings) == count
    table.write_text(before)
    run_head(experiment, tmp_path / "out", say=lambda line: None)
    assert len(trainings) > count


def test_cross_fitted_guidance_comes_from_networks_that_did_not_see_the_image(
    experiment_file, drawn, tmp_path, trainings
):
    experiment = load_experiment(str(experiment_file(TEXT + CROSSED)), [*drawn, "axes.seed=1", "axes.method=crossfit"])
    run_head(experiment, tmp_path / "out", say=lambda line: None)
    assert [stage for stage, *_ in trainings] == ["guidance", "guidance", "guidance", "diffusion"]
    whole, first, second = (train for _, _, train, _ in trainings[:3])
    folds = fold_of(whole.groups, 2, 1)
    assert 0 < folds.sum() < len(folds)
    assert not set(first.groups) & set(whole.groups[folds == 0]) and not set(second.groups) & set(
        whole.groups[folds == 1]
    )
    assert sorted([*first.keys, *second.keys]) == sorted(whole.keys)
    table = trainings[3][3]
    assert sorted(table.keys) == sorted(whole.keys)
    states = [load_tensors(path) for path in (tmp_path / "out" / "shared").glob("guidance-*")]
    for keys, unseen in ((whole.keys[folds == 0], first), (whole.keys[folds == 1], second)):
        said = table.at(keys)[0].numpy()
        agrees = []
        for state in states:  # exactly one network says this of these images: the one trained without them
            module = head_module.build_module(head_module.guidance_spec(trainings[0][1]), "guidance")
            head_module.load_state(module.network, state)
            own = head_module.guidance_table(module, whole.subset(np.isin(whole.keys, keys)))
            agrees.append(np.allclose(own.at(keys)[0].numpy(), said, atol=1e-6))
        assert sum(agrees) == 1 and not set(unseen.keys) & set(keys)


def test_the_split_is_one_for_all_seeds_and_the_weights_are_not(finished):
    cells = finished / "out" / "cells"
    one, two = (load_tensors(cells / f"seed-{seed}_method-guidance" / "test.safetensors") for seed in (1, 2))
    assert np.array_equal(one["keys"], two["keys"]) and not np.allclose(one["scores"], two["scores"])


def test_parameters_of_ensemble_and_head_differ_by_the_heads_own(finished):
    facts = {
        name: read_json(finished / "out" / "cells" / f"seed-1_method-{name}" / "facts.json")
        for name in ("guidance", "ensemble", "chain", "mean")
    }
    latent, timesteps = 16, 1000
    classes = len(facts["chain"]["classes"])
    blocks = [(2 * classes + 1) * latent, *[(latent + 1) * latent] * 2]
    head = sum(blocks) + 3 * ((timesteps + 1) * latent + 2 * latent) + (latent + 1) * classes
    assert facts["chain"]["trained"] == facts["mean"]["trained"]
    assert facts["chain"]["trained"] - facts["ensemble"]["trained"] == head - (latent + 1) * classes
    assert {f["steps"] for f in facts.values()} == {3}


def test_tables_come_from_files_and_nothing_else(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    shutil.rmtree(out / "shared")
    first = [path.read_text() for path in write_head_report(out)]
    assert len(first) == 2 and first == [path.read_text() for path in write_head_report(out)]
    assert [path.read_text() for path in write_head_report(finished / "out")] == first
    page = "a\n<!-- head test -->\nold\n<!-- end of head test -->\nb\n"
    written = put(page, out)
    assert written.startswith("a\n<!-- head test -->\n**Test, ") and written.endswith("<!-- end of head test -->\nb\n")
    assert put(written, out) == written and "old" not in written
    said = put("<!-- head verdict -->\n<!-- end of head verdict -->", out)
    assert "**Test, " in said and "|" not in said
    with pytest.raises(UsageError, match="no line"):
        put("nothing", out)


def test_a_table_shows_each_method_and_its_difference(finished):
    methods = methods_of(finished / "out", "test")
    assert {name: m.kind for name, m in methods.items() if ":" not in name} == {
        "guidance": "guidance",
        "ensemble": "ensemble",
        "chain": "head",
        "mean": "head",
    }
    text = "\n".join(report_lines(finished / "out", "test"))
    value = np.mean([one.value["nll"] for one in methods["mean"].judged])
    assert f"{value:.3f}" in text and "minus ensemble" in text and "minus guidance" in text
    difference = paired(methods["mean"], methods["ensemble"], "nll")
    expected = np.mean(
        [
            a.value["nll"] - b.value["nll"]
            for a, b in zip(methods["mean"].judged, methods["ensemble"].judged, strict=True)
        ]
    )
    assert difference.mean == pytest.approx(expected)
    said = verdict(methods)
    assert len(said) == 3 and ("is not shown" in said[0] or "Level with" in said[0]) and "One seed" not in said[0]
    assert "Without an ensemble" in verdict({"mean": methods["mean"]})[0]


def test_cells_of_other_images_are_not_put_into_one_table(finished, tmp_path):
    from fed_diffmic.files import save_tensors

    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    path = out / "cells" / "seed-1_method-mean" / "test.safetensors"
    tensors = load_tensors(path)
    save_tensors(path, {**tensors, "keys": tensors["keys"][::-1].copy()})
    with pytest.raises(UsageError, match="other images"):
        methods_of(out, "test")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (["stages.diffusion.crossfit=2", "stages.diffusion.augment=true"], "augment"),
        (["stages.diffusion.crossfit=1"], "crossfit"),
        (["stages.guidance.rounds=0", "stages.diffusion.rounds=0", "stages.plain.rounds=1"], "guidance"),
    ],
)
def test_what_cannot_be_held_against_anything_is_refused(experiment_file, drawn, tmp_path, setting, said):
    text = yaml.safe_load(TEXT)
    text["axes"]["method"] = {"one": setting}
    experiment = load_experiment(str(experiment_file(yaml.safe_dump(text))), drawn)
    with pytest.raises(ConfigError, match=said):
        run_head(experiment, tmp_path / "out", say=lambda line: None)


@pytest.mark.parametrize(
    ("shipped", "twins"),
    [
        (
            "head-ham10000",
            {
                "residual-own-mean": "ensemble",
                "residual-own": "ensemble",
                "residual-own-crossfit": "ensemble",
                "residual-frozen": "ensemble-frozen",
                "paper-frozen": "ensemble-frozen",
                "residual-guidance": "ensemble",  # none has its networks, so the first
            },
        ),
        (
            "head-federated",
            {
                "residual-own": "ensemble",
                "residual-own-mean-sgd": "ensemble-sgd",
                "paper-frozen": "ensemble-frozen",
            },
        ),
    ],
)
def test_a_head_is_held_against_the_ensemble_of_its_own_networks(tmp_path, finished, shipped, twins):
    """The paper's head on frozen encoders was called better than an ensemble whose encoders were the worse ones."""
    judged = methods_of(finished / "out", "test")["mean"].judged
    methods = {}
    for cell in load_experiment(str(SHIPPED / f"{shipped}.yaml"), ["axes.seed=1"]).cells:
        stage = "diffusion" if cell.config.stages.diffusion.rounds else "guidance"
        (tmp_path / "cell.yaml").write_text(to_yaml(cell.config))
        kind, networks = kind_of(tmp_path, {"stage": stage})
        methods[cell.place["method"]] = Method(kind, networks, ("1", "2"), judged, {}, np.arange(1))
    found = {name: twin_of(methods, method) for name, method in methods.items() if method.kind == "head"}
    assert twins.items() <= found.items()
    words = verdict(methods)
    assert all(any(line.startswith(f"{name} minus {twin} (") for line in words) for name, twin in found.items())


def test_the_shipped_one_differs_in_nothing_but_the_method():
    """Same backbones, steps, batches and rates: only what a method names."""
    cells = load_experiment(str(SHIPPED / "head-ham10000.yaml"), ["axes.seed=1"]).cells
    for cell in cells:
        model, stages = cell.config.model, cell.config.stages
        assert len({model.guidance_backbone, model.prior_backbone, model.region_backbone}) == 1
        assert stages.guidance == cells[0].config.stages.guidance
        if stages.diffusion.rounds:
            assert (stages.diffusion.rounds, stages.diffusion.steps) == (1, stages.guidance.steps)
            assert not stages.diffusion.augment and stages.diffusion.blend
