"""What a consortium's programs have loaded when they reach for the network, and a simulation in its first round."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "timm", "scipy", "flwr", "fastapi", "sqlalchemy", "ray"}
PROGRAM = """
import json, os, sys, time
import {module} as supervisor

def reached(*_, **__):
    print(json.dumps({{"loaded": sorted(sys.modules), "seconds": time.process_time()}}), flush=True)
    os._exit(0)

supervisor.{start} = reached
from {program} import main
main(sys.argv[1:])
"""
SITE = """
site: {name: a, folder: FOLDER/site, device: cpu}
coordinator: {address: "localhost:9", insecure: true}
dataset: {name: table, root: FOLDER, classes: ["0", "1"], task: multiclass}
"""


def loaded(program: str, module: str, start: str, arguments: list[str]) -> tuple[set[str], float]:
    code = PROGRAM.format(program=program, module=module, start=start)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[-1])
    return {name.partition(".")[0] for name in found["loaded"]}, float(found["seconds"])


def test_a_coordinator_listens_before_it_loads_what_it_trains_with(tmp_path: Path) -> None:
    given = ["model=tiny", "stages=tiny", "security.insecure=true", "consortium.sites=[a]"]
    given.append(f"run.dir={tmp_path / 'run'}")
    found, seconds = loaded("server.cli", "server.supervisor", "start_superlink", given)
    assert not found & HEAVY
    assert seconds < 4.0  # 1.7 where twenty other processes want the same two cores


def test_a_site_reaches_for_the_coordinator_before_it_loads_anything_of_its_work(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("image,label,patient_id\n", encoding="utf-8")
    file = tmp_path / "site.yaml"
    file.write_text(SITE.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    given = ["client", "--config", str(file)]
    found, seconds = loaded("fed_diffmic.cli", "client.supervisor", "start_supernode", given)
    assert not found & HEAVY
    assert seconds < 4.0


@pytest.mark.parametrize("name", ["tiny", "compact", "paper"])
def test_every_preset_is_one_that_can_exist(name: str) -> None:
    """A preset is not looked at before a start."""
    from fed_diffmic.config.compose import compose
    from fed_diffmic.config.stock import is_stock
    from fed_diffmic.models.checks import check_architecture, explore

    model = compose(None, [f"model={name}"]).model
    assert is_stock(model)
    explore(model)
    check_architecture(model)
    for changed in ("latent=16", "pretrained=false", "weights=none.pt"):
        assert is_stock(compose(None, [f"model={name}", f"model.{changed}"]).model)
    for changed in ("image_side=512", "crop=24", "regions=5"):
        assert not is_stock(compose(None, [f"model={name}", f"model.{changed}"]).model)


FIRST_ROUND = """
import json, os, sys
from fed_diffmic.reporting.events import EventLog
emit = EventLog.emit

def seen(self, kind, **facts):
    event = emit(self, kind, **facts)
    if kind == "round_done":
        print(json.dumps(sorted(sys.modules)), flush=True)
        os._exit(0)
    return event

EventLog.emit = seen
from fed_diffmic.cli import main
main(sys.argv[1:])
"""


def test_a_simulation_of_a_preset_loads_no_algebra_and_no_pictures(tmp_path: Path) -> None:
    given = ["simulate", "dataset=phantoms", "dataset.phantom_images=48", "model=tiny", "stages=tiny"]
    given += ["partition.sites=2", "stages.guidance.steps=1", "stages.guidance.rounds=1", "run.device=cpu"]
    given += [f"run.dir={tmp_path / 'run'}", f"dataset.cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run([sys.executable, "-c", FIRST_ROUND, *given], capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert lines, done.stderr[-3000:]
    # sympy by way of shapes on the device `meta`, the sparse matrices by that of units that several sites have.
    away = {"sympy", "torch.fx.experimental.symbolic_shapes", "torch._dynamo"}
    away |= {"scipy.sparse", "scipy.stats", "scipy.linalg", "sklearn", "matplotlib", "ray", "fastapi", "sqlalchemy"}
    assert not away & set(json.loads(lines[-1]))


@pytest.mark.parametrize("name", ["tiny", "compact", "paper"])
def test_the_grid_of_a_preset_is_that_of_its_encoder(name: str) -> None:
    from fed_diffmic.config.compose import compose
    from fed_diffmic.models.checks import encoder_grid, guidance_grid

    model = compose(None, [f"model={name}"]).model
    assert guidance_grid(model) == encoder_grid(model, "guidance_backbone")
