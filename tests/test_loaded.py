"""What the two programs of a consortium have loaded when they first reach for the network: no torch, no Flower."""

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
    from fed_diffmic.models.checks import check_architecture

    model = compose(None, [f"model={name}"]).model
    assert is_stock(model)
    check_architecture(model)
    for changed in ("latent=16", "pretrained=false", "weights=none.pt"):
        assert is_stock(compose(None, [f"model={name}", f"model.{changed}"]).model)
    for changed in ("image_side=512", "crop=24", "regions=5"):
        assert not is_stock(compose(None, [f"model={name}", f"model.{changed}"]).model)
