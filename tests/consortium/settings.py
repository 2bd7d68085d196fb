"""What a small consortium trains on and how; and the same training as a simulation."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fed_diffmic.data.phantoms import draw
from fed_diffmic.data.phantoms.canvas import site_style
from fed_diffmic.seeding import numpy_generator
from tests.consortium.programs import BIN, environment

SITES = ("aurum", "birch", "cedar")
CLASSES = ["0", "1", "2"]
SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",)
IMAGE_SIDE = 48

MODEL = {
    "image_side": 32, "regions": 2, "crop": 16, "latent": 16, "sampling_steps": 2, "sampling_starts": 1, "attention": 8,
    "feature_stride": 16, "prior_init": "guidance",
}  # fmt: skip
FLOORS = {
    "secret_draws": False,  # the simulation, to which weights are compared, has no secret
    "step_images": 0,
    "step_patients": 0,
    "update_images": 0,
    "update_patients": 0,
    "figure_patients": 0,
    "sums_images": 0,
    "few_images": 0,
    "largest_share": 1.0,
    "isolation": False,
}  # its sites have a dozen images
STAGE = {"rounds": 2, "epochs": 1, "batch_size": 4, "lr": 2e-3, "ema": 0.5}


def write_data(folder: Path, images: int = 21, sites: Sequence[str] = SITES, splits: Sequence[str] = SPLITS) -> None:
    """Draw ``folder/all`` (the union, with its institutions) and ``folder/<number>`` for each site's own images."""
    from PIL import Image

    union = ["image,label,patient_id,institution,split"]
    for number, site in enumerate(sites):
        own = ["image,label,patient_id,split"]
        place = folder / str(number)
        place.mkdir(parents=True)
        for i in range(images):
            label, split = i % len(CLASSES), splits[(i // len(CLASSES)) % len(splits)]
            subject = numpy_generator(7, "consortium", number, i, "subject")
            view = numpy_generator(7, "consortium", number, i, "view")
            pixels = draw("ultrasound", label, site_style(number), subject, view, IMAGE_SIDE)
            Image.fromarray(pixels).save(place / f"{i}.png")
            own.append(f"{i}.png,{label},{number}-{i},{split}")
            union.append(f"{number}/{i}.png,{label},{number}-{i},{site},{split}")
        (place / "manifest.csv").write_text("\n".join(own) + "\n", encoding="utf-8")
    (folder / "manifest.csv").write_text("\n".join(union) + "\n", encoding="utf-8")


def training(**stage: Any) -> dict[str, Any]:
    """What the consortium and its simulation have in common."""
    settings = {**STAGE, **stage}
    return {
        "seed": 5,
        "model": "tiny",
        "stages": "tiny",
        "model_settings": MODEL,
        "stage_settings": {"guidance": settings, "diffusion": {**settings, "rounds": min(1, settings["rounds"])}},
    }


def overrides(common: Mapping[str, Any]) -> list[str]:
    """The same as ``key=value``."""
    found = [f"model={common['model']}", f"stages={common['stages']}", f"seed={common['seed']}"]
    found += [f"strategy={common['strategy']}"] if "strategy" in common else []
    found += [f"model.{key}={value}" for key, value in common["model_settings"].items()]
    for stage, settings in common["stage_settings"].items():
        found += [f"stages.{stage}.{key}={value}" for key, value in settings.items()]
    found += [f"strategy.{key}={value}" for key, value in common.get("strategy_settings", {}).items()]
    return found


def same_bounds() -> list[str]:
    """What a coordinator bounds by default and a simulation does not, for the simulation."""
    from fed_diffmic.config.server import ServerRunConfig

    run = ServerRunConfig()
    return [f"run.{key}={getattr(run, key)}" for key in ("max_share", "norm_rule", "norm_multiple")]


def simulation_settings(folder: Path, data: Path, common: Mapping[str, Any]) -> list[str]:
    """Of the simulation over the union of the sites' tables."""
    return [
        *overrides(common), *common.get("privacy", ()),
        "dataset=table", f"dataset.root={data}", "dataset.task=multiclass",
        "dataset.classes=[" + ",".join(f'"{c}"' for c in CLASSES) + "]",
        f"dataset.cache_dir={folder / 'simulation-cache'}", "partition=institution", "partition.min_images=1",
        "run.device=cpu", "run.bootstrap=0", f"run.dir={folder / 'simulation'}", *same_bounds(),
    ]  # fmt: skip


def weights_of_rounds(folder: Path, data: Path, common: Mapping[str, Any], rounds: int) -> list[str]:
    """The weights' digest after each of the guidance stage's first rounds, in the simulation.

    The coordinator's audit log, which the simulation itself does not keep, names them.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    from fed_diffmic.config.compose import compose, to_json
    from fed_diffmic.config.spec import make_spec
    from fed_diffmic.exchange.audit import AuditLog
    from server.bounds import Bounds
    from server.checkpoints import CheckpointStore
    from server.hooks import Hooks
    from server.rounds import run_federation
    from server.terms import RunTerms
    from simulations.flower_app import client_app
    from simulations.grid import InProcessGrid
    from simulations.sites import shared_sites
    from tests.toy import Events

    run = folder / "simulation"
    config = compose(None, [*simulation_settings(folder, data, common), f"stages.guidance.rounds={rounds}"])
    sites = shared_sites(config, run)
    spec = make_spec(config, classes=sites.classes, task=sites.task, run_id="simulation", arm="federated", device="cpu")
    nodes = [{"site": site, "partition-id": i, "num-partitions": len(SITES)} for i, site in enumerate(SITES)]
    grid = InProcessGrid(client_app, nodes, {"config-json": to_json(config), "run-dir": str(run)})
    audit = AuditLog(run / "audit.jsonl", ec.generate_private_key(ec.SECP256R1()), owner="coordinator")
    hooks = Hooks(audit=audit, bounds=Bounds.of(config.run))
    store = CheckpointStore(run)
    final = run_federation(grid, spec, store, Events([]), RunTerms(["guidance"], SITES), hooks=hooks)
    return [row["weights"] for row in final.history]


def simulate(folder: Path, data: Path, common: Mapping[str, Any]) -> Path:
    """The in-process simulation over the union of the sites' tables; its run folder."""
    command = [str(BIN / "fed-diffmic"), "simulate", *simulation_settings(folder, data, common)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "simulation"


def final_weights(run: Path) -> dict[str, bytes]:
    """The files of the final model, as bytes."""
    return {path.name: path.read_bytes() for path in sorted((run / "final").glob("*.safetensors"))}
