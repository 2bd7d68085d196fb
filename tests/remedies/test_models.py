"""Weights, finished models, references and comparisons that are refused: as the message says, they are read."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fed_diffmic.config.compose import compose
from fed_diffmic.files import load_tensors, save_tensors
from fed_diffmic.inference import export
from fed_diffmic.inference.finished import final_predictor
from fed_diffmic.inference.reference import Reference, load_reference
from fed_diffmic.models import checks
from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.checks import encoder_grid
from fed_diffmic.models.weights import load_encoder, load_pretrained, read_weights
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.release.personal import part_of_site, save_part
from fed_diffmic.reporting.compare import read_runs, write_comparison
from fed_diffmic.reporting.tracking import make_trackers
from fed_diffmic.training.familiar import Familiar
from fed_diffmic.training.stages import build_module, initial_state, load_state
from fed_diffmic.training.sureness import Sureness
from server.stage import start_state
from tests.inference.tiny import draw_images, tiny_model, tiny_spec, write_tiny_run
from tests.models.test_weights import published
from tests.remedies.places import remedy_in, tries
from tests.reporting.conftest import build_summary
from tests.reporting.test_compare import make_run

WEIGHTS, FINAL, STAGES = (
    "fed_diffmic/models/weights.py::",
    "fed_diffmic/release/final.py::",
    "fed_diffmic/training/stages.py::",
)
REFERENCE, COMPARE = "fed_diffmic/inference/reference.py::", "fed_diffmic/reporting/compare.py::"


@pytest.fixture(scope="module")
def tiny() -> FinalModel:
    """A model at its seeded start."""
    return tiny_model(tiny_spec())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a finished run."""
    return write_tiny_run(tmp_path_factory.mktemp("written") / "run")


@tries(
    f"{WEIGHTS}read_weights | Check model.",
    f"{WEIGHTS}read_weights | Save it agai",
    f"{WEIGHTS}read_weights | Give a state",
    f"{WEIGHTS}_misfit",
    f"{WEIGHTS}_published_fit",
)
def test_files_of_weights(monkeypatch) -> None:
    encoder, state = Encoder("test_resnet", side=64), published()
    save_file(state, "w.safetensors")
    for key in remedy_in(lambda: read_weights("none"), r"Check model\.(\w+) and model\.(\w+)").groups():
        assert compose(None, [f"model.{key}=w.safetensors"])
    Path("w.pth").write_bytes(b"torn")
    said = remedy_in(lambda: read_weights("w.pth"), r"as safetensors, or with (torch\.save)\((model\.state_dict\(\)), ")
    assert said.groups() == ("torch.save", "model.state_dict()")
    torch.save([1, 2], "w.pth")
    remedy_in(lambda: read_weights("w.pth"), "Give a state dict: a dictionary of tensors by name")
    torch.save(state, "w.pth")
    load_encoder(encoder, "w.pth")
    other = Encoder("test_convnext", side=64)
    remedy_in(
        lambda: load_encoder(other, "w.pth"), "Give the weights of this backbone, or name the backbone that the file"
    )
    save_file(published("test_convnext"), "other.safetensors")
    load_encoder(other, "other.safetensors")
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **rest: object) -> object:
        if pretrained:
            raise OSError("no connection")
        return create(name, **rest)

    monkeypatch.setattr("timm.create_model", offline)
    module = torch.nn.ModuleDict({"encoder": encoder})
    config = replace(compose(None, ["model=tiny"]).model, pretrained=True)
    found = remedy_in(lambda: load_pretrained(module, config), r"name it in model\.(\w+) and set model\.(\w+)=(\w+)")
    weights, pretrained, value = found.groups()
    named = replace(config, **{weights: "w.safetensors"})
    remedy_in(lambda: load_pretrained(module, named), "cannot be had")  # half of the remedy is none
    assert load_pretrained(module, replace(named, **{pretrained: value == "true"}))


@tries(f"{STAGES}initial_state", f"{STAGES}load_state")
def test_networks_built_by_hand(tiny) -> None:
    guidance, spec = tiny.states["guidance"], tiny.spec
    remedy_in(lambda: initial_state(spec, "diffusion"), "Give what the stage guidance came to")
    initial_state(spec, "diffusion", guidance)
    other = tiny_spec(classes=("a", "b"))
    network = build_module(other, "guidance").network
    remedy_in(lambda: load_state(network, guidance), r"Use the configuration \(model group, classes\) that the weights")
    load_state(build_module(spec, "guidance").network, guidance)


@tries("server/stage.py::start_state")
def test_a_stage_that_begins_with_a_file(tiny) -> None:
    good = tiny.states["guidance"]
    guidance = replace(tiny.spec.stages.guidance, init="begin.safetensors")
    spec = replace(tiny.spec, stages=replace(tiny.spec.stages, guidance=guidance))
    save_tensors("begin.safetensors", {**good, "saliency.weight": np.full_like(good["saliency.weight"], np.inf)})
    remedy_in(lambda: start_state(spec, "guidance", None), "Give the weights of a stage that ended well")
    save_tensors("begin.safetensors", good)
    assert set(start_state(spec, "guidance", None)) == set(good)


@tries(
    "fed_diffmic/models/checks.py::explore | at most model.imag",
    "fed_diffmic/models/checks.py::explore | at most model.time",
)
def test_a_network_that_is_asked_for_by_hand() -> None:
    config = compose(None, ["model=tiny", "model.timesteps=20", "model.sampling_steps=5"]).model
    for key, of, part in (("crop", config.image_side, 4), ("sampling_steps", config.timesteps, 1)):
        wrong = replace(config, **{key: of + 1})
        said = remedy_in(lambda wrong=wrong: checks.check_architecture(wrong), rf"model\.({key})=.* at most \S+=(\d+)")
        checks.check_architecture(replace(wrong, **{said[1]: int(said[2]) // part}))


@tries("fed_diffmic/models/checks.py::encoder_grid")
def test_a_backbone_whose_features_are_no_squares(monkeypatch) -> None:
    config, shape = compose(None, ["model=tiny"]).model, checks._feature_shape
    flat = replace(config, guidance_backbone="test_convnext")
    monkeypatch.setattr(
        checks, "_feature_shape", lambda name, more: (2, 4, 3, 2) if "conv" in name else shape(name, more)
    )
    remedy_in(lambda: encoder_grid(flat, "guidance_backbone"), "a timm backbone that gives square feature maps")
    assert encoder_grid(config, "guidance_backbone") > 0


@tries(
    f"{FINAL}load_final | Name a run t",
    f"{FINAL}load_final | {{_VERSION}}",
    f"{FINAL}load_final | Fetch the folder",
    f"{FINAL}_check_architecture",
)
def test_a_finished_run(written) -> None:
    def fetch() -> None:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(written, "run")

    def change(**values: object) -> None:
        path = Path("run/final/model.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def wither() -> None:
        path = Path("run/final/guidance.safetensors")
        save_tensors(path, {name: value * 0 for name, value in load_tensors(path).items()})

    Path("none").mkdir()
    remedy_in(lambda: load_final("none"), r"Name a run that has ended \(its folder holds final/\)")
    changes: list[tuple[Callable[[], None], str]] = [
        (lambda: change(format=99), "or fetch the folder `final` again, whole"),
        (lambda: change(history=None, calibration=3), "or fetch the folder `final` again, whole"),
        (wither, "Fetch the folder `final` again, whole"),
        (lambda: change(architecture={"guidance": "0" * 64}), "Fetch the folder `final` again, whole"),
    ]
    for damage, words in changes:
        fetch()
        damage()
        remedy_in(lambda: load_final("run"), words)
        fetch()
        load_final("run")


@tries(
    "fed_diffmic/release/personal.py::part_of_site | Say whose pa",
    "fed_diffmic/release/personal.py::part_of_site | It has {has}",
)
def test_whose_part_of_a_model(tiny) -> None:
    spec = replace(tiny.spec, strategy=replace(tiny.spec.strategy, name="fedper"))
    final = replace(tiny, spec=spec, personal={"guidance": {"a": "0" * 64}})
    [option, site] = remedy_in(
        lambda: part_of_site(Path("run"), final, "guidance", None), r"(--site) NAME, one of (\w+)"
    ).groups()
    assert option == "--site"
    [known] = remedy_in(lambda: part_of_site(Path("run"), final, "guidance", "b"), r"It has one of (\w+)\.").groups()
    save_part(Path("run"), "guidance", known, {"w": np.ones(2, np.float32)})
    assert part_of_site(Path("run"), final, "guidance", site)


@tries("fed_diffmic/inference/export.py::export_onnx | Predict with")
def test_a_graph_is_too_large(written, monkeypatch, says, works) -> None:
    shutil.copytree(written, "run")
    draw_images(Path("images"), 1)
    monkeypatch.setattr(export, "_LARGEST", 1)
    [command] = re.search(r"`fed-diffmic (predict)`", says("export", "--run", "run", "--out", "m.onnx")).groups()
    works(command, "--run", "run", "--csv", "found.csv", "images")


@tries(f"{REFERENCE}load_reference | {{remedy}}", f"{REFERENCE}load_reference | Predict with")
def test_a_reference_of_a_site(written) -> None:
    predictor, path = final_predictor(written, None, None), Path("own.safetensors")
    usual = Familiar(np.zeros((1, 2)), np.eye(2), 1.0, 0.95, 50)
    own = Reference(predictor.digest, Sureness("multiclass", 3), usual)
    for wrong in (
        replace(own, model="0" * 64),
        replace(own, familiar=replace(usual, precision=np.eye(3))),
        replace(own, familiar=replace(usual, threshold=0.5), sureness=own.sureness),
    ):
        wrong.save(path)
        if wrong.familiar.threshold == 0.5:
            save_tensors(path, {"means": np.zeros((1, 2))})
        remedy_in(lambda: load_reference(path, predictor), "Make it again with `fed-diffmic reference`")
        own.save(path)
        assert load_reference(path, predictor).model == predictor.digest
    replace(own, precision="bfloat16").save(path)
    told = remedy_in(lambda: load_reference(path, predictor), r"Predict with `--precision (\w+)`")
    assert load_reference(path, final_predictor(written, None, None, precision=told[1])).precision == "bfloat16"


@tries(f"{COMPARE}read_runs", f"{COMPARE}write_comparison")
def test_runs_side_by_side() -> None:
    summary = build_summary(signal={"federated": 2.2})
    other = copy.deepcopy(summary) | {"classes": ["x", *summary["classes"][1:]]}
    runs = [make_run(Path(name), of, 1.0) for name, of in (("one", summary), ("two", summary), ("x", other))]
    remedy_in(lambda: read_runs([runs[0], runs[2]]), "Compare runs on the same classes")
    same = read_runs(runs[:2])
    remedy_in(lambda: write_comparison(Path("page.html"), same[:1]), "Name the others after --compare")
    assert write_comparison(Path("page.html"), same).exists()


@tries("fed_diffmic/reporting/tracking.py::make_trackers")
def test_where_a_run_is_tracked() -> None:
    [none, first] = remedy_in(lambda: make_trackers("wandb", Path()), r"allowed: (\w+), (\w+)").groups()
    assert make_trackers(none, Path()) == [] and first == "tensorboard"
