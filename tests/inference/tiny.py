"""A finished run without training: a tiny model at its seeded start, on disk; and drawn images beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fed_diffmic.config.compose import compose
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.files import tensors_digest
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.release.final import FinalModel, write_final
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.stages import initial_state

SIDE = 32
CLASSES = ("benign", "malignant", "other")
SETTINGS = ["model=tiny", f"model.image_side={SIDE}", "model.regions=2", "run.device=cpu"]


def tiny_spec(*settings: str, task: str = "multiclass", classes: tuple[str, ...] = CLASSES) -> RunSpec:
    config = compose(None, [*SETTINGS, *settings])
    return make_spec(config, classes=classes, task=task, run_id="tiny", arm="federated", device="cpu")


def tiny_model(spec: RunSpec) -> FinalModel:
    """Calibrated with a scale at which the seeded start's scores tell the images apart."""
    scale = 2.0 if spec.task == "multilabel" else 40.0
    guidance = initial_state(spec, "guidance")
    states = {"guidance": guidance, "diffusion": initial_state(spec, "diffusion", guidance)}
    prior = tuple(np.linspace(1, 2, spec.num_classes) / np.linspace(1, 2, spec.num_classes).sum())
    fitted = Calibration(spec.task, scale, 0.5, prior)
    digests = {stage: tensors_digest(state) for stage, state in states.items()}
    return FinalModel(spec, states, dict.fromkeys(states, fitted), [], 0, digests)


def write_tiny_run(folder: Path, *settings: str, task: str = "multiclass", classes: tuple[str, ...] = CLASSES) -> Path:
    folder.mkdir(parents=True)
    write_final(folder, tiny_model(tiny_spec(*settings, task=task, classes=classes)))
    return folder


def tiny_predictor(*settings: str, task: str = "multiclass", stage: str = "diffusion") -> Predictor:
    spec = tiny_spec(*settings, task=task)
    model = tiny_model(spec)
    return Predictor(spec, stage, model.states[stage], model.calibration[stage])


def draw_images(folder: Path, count: int, seed: int = 0, ending: str = ".png") -> list[Path]:
    """Blocks of colour, each its own; sides of 40 to 60 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(seed), []
    for number in range(count):
        height, width = rng.integers(40, 61, 2)
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((15, 15, 1)))[:height, :width].astype(np.uint8)
        paths.append(folder / f"image-{number:03d}{ending}")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def write_table(folder: Path, images: list[Path], classes: tuple[str, ...] = CLASSES) -> Path:
    lines = [f"{path.relative_to(folder)},{classes[i % len(classes)]}" for i, path in enumerate(images)]
    (folder / "table.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    return folder / "table.csv"
