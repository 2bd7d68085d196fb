"""Ray and the in-process grid give the same weights, bit for bit, for a convolution and a ViT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.serverapp import ServerApp

from fed_diffmic.config.compose import compose, to_json
from fed_diffmic.config.spec import make_spec
from fed_diffmic.errors import ConfigError
from simulations import ray_backend
from simulations.ray_backend import InterruptedRunError, StoppableGrid
from tests import toy

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("ray")

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}

PROGRAM = """
import json, os, sys
from pathlib import Path
from client.app import app as site_app
from server.app import app as server_app
from fed_diffmic.release.final import load_final
from simulations.flower_app import VirtualClientApp
from simulations.grid import run_in_process
from simulations.ray_backend import run_on_ray
from tests.toy import ToySource, toy_site

def listening() -> list[str]:
    "Addresses, in hexadecimal, on which any of Ray's processes listens."
    inodes = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray" in (entry / "cmdline").read_bytes().split(b"--")[0]:
                inodes |= {os.readlink(fd) for fd in (entry / "fd").iterdir()}
        except OSError:
            continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
    return sorted(row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes)

class Watching(ToySource):
    def __call__(self, context, spec, header):
        if not Path("/proc/self/cmdline").read_bytes().startswith(b"ray::"):
            return super().__call__(context, spec, header)
        (folder / "listening.json").write_text(json.dumps(listening()))
        return super().__call__(context, spec, header)

folder, run_config = Path(sys.argv[1]), json.loads(sys.argv[2])
source = Watching({name: toy_site(name, seed, side=64) for seed, name in enumerate(("a", "b"), start=1)})
nodes = [{"site": "a"}, {"site": "b"}]
result = {}
for backend in ("inprocess", "ray"):
    config = {**run_config, "run-dir": str(folder / backend)}
    if backend == "ray":
        run_on_ray(server_app, nodes, config, source=source, cpus=2)
    else:
        partitions = [{"partition-id": 0}, {"partition-id": 1}]
        run_in_process(server_app, VirtualClientApp(nodes, config, source), partitions, config)
    final = load_final(folder / backend)
    result[backend] = {"digests": final.digests, "calibration": {k: v.to_json() for k, v in final.calibration.items()}}
print(json.dumps(result))
"""


def run_config(prior: str) -> dict[str, str]:
    options = ["model=tiny", f"model.prior_backbone={prior}", "stages.guidance.rounds=1", "stages.diffusion.rounds=1"]
    options += [
        f"stages.{stage}.{value}" for stage in ("guidance", "diffusion") for value in ("batch_size=6", "epochs=1")
    ]
    options += ["model.prior_init=own", "model.sampling_steps=2"]
    config = compose(None, options)
    spec = make_spec(config, classes=toy.CLASSES, task="multiclass", run_id="twin", arm="federated", device="cpu")
    return {"config-json": to_json(config), "spec-json": spec.to_json(), "sites": "a|b"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_equal_weights_on_ray_and_in_process_for_a_convolution_and_a_vit(tmp_path: Path) -> None:
    """The guidance network is a convolution, the prior's global encoder a ViT; both stages are trained."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(run_config("test_vit"))]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(result["ray"]["digests"]) == {"guidance", "diffusion"}
    assert result["ray"] == result["inprocess"]
    listening = json.loads((tmp_path / "listening.json").read_text())
    assert len(listening) >= 3
    assert set(listening) <= LOOPBACK


def test_a_stopped_grid_raises_in_the_coordinators_thread(tmp_path: Path) -> None:
    """Ctrl-C reaches the main thread only; the engine itself would wait for the coordinator for ever."""
    stop = threading.Event()
    grid = StoppableGrid(toy.toy_grid(tmp_path)[0], stop)
    assert list(grid.get_node_ids()) == [1, 2]
    stop.set()
    for call in (grid.get_node_ids, lambda: grid.push_messages([]), lambda: grid.pull_messages([])):
        with pytest.raises(InterruptedRunError):
            call()


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="simulation"):
        ray_backend.run_on_ray(ServerApp(), [{}], {})
