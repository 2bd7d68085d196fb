"""Stock ``flwr run .``: the same ServerApp and ClientApp under Flower's own SuperLink, on loopback."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flwr.app import Context, RecordDict

from fed_diffmic.exchange.payload import Limits, Payload, encode, request_name
from fed_diffmic.release.final import load_final
from fed_diffmic.reporting.events import read_events
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import from_record, task_message
from simulations.flower_app import VirtualClientApp, client_app, virtual_site_folder
from tests import toy

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def context(**run_config: str) -> Context:
    return Context(
        run_id=9, node_id=4, node_config={"partition-id": 1}, state=RecordDict(), run_config=dict(run_config)
    )


def labels(app: VirtualClientApp, where: Context) -> Payload:
    payload = Payload("labels", {"run": "x"})
    message = task_message(encode(payload), node=4, message_type="query.labels", ttl=60.0, group="0")
    set_message_id(message, "1")
    return from_record(app(message=message, context=where).content, Limits(0))


def test_each_partition_is_its_own_virtual_site(tmp_path: Path) -> None:
    source = toy.ToySource({"a": toy.toy_site("a", 1), "b": toy.toy_site("b", 2)})
    app = VirtualClientApp([{"site": "a"}, {"site": "b"}], {"run-dir": str(tmp_path)}, source)
    where = context()
    reply = labels(app, where)
    assert reply.header == {
        "run": "x",
        "request": request_name({"run": "x"}),
        "classes": list(toy.CLASSES),
        "task": "multiclass",
    }
    assert where.run_config == {}  # Flower refuses a context whose run configuration changed
    assert where.node_config == {"partition-id": 1}


def test_the_app_survives_pickling_as_rays_actors_need(tmp_path: Path) -> None:
    source = toy.ToySource({"a": toy.toy_site("a", 1), "b": toy.toy_site("b", 2)})
    app = pickle.loads(
        pickle.dumps(VirtualClientApp([{"site": "a"}, {"site": "b"}], {"run-dir": str(tmp_path)}, source))
    )
    assert labels(app, context()).header["task"] == "multiclass"
    assert isinstance(pickle.loads(pickle.dumps(client_app)), VirtualClientApp)


def test_a_virtual_sites_folder_lies_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert virtual_site_folder(context(**{"run-dir": str(tmp_path)})) == tmp_path / "sites" / "partition-1"
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    assert virtual_site_folder(context()) == tmp_path / "home" / "fed_diffmic" / "run-9" / "sites" / "partition-1"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, from /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        below = parents.get(queue.pop(), [])
        found += below
        queue += below
    return found


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink of our own on loopback; it and everything it started is ended by pid."""
    port = free_port()
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    command = [str(BIN / "flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    with open(tmp_path / "superlink.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1, trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield environment
    finally:
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)
        for member in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stock_flwr_run_trains_both_stages(tmp_path: Path, superlink: dict[str, str]) -> None:
    pytest.importorskip("ray")
    run_dir = tmp_path / "run"
    overrides = "model=tiny partition=iid partition.sites=2 dataset.phantom_images=60 model.sampling_steps=2"
    overrides += " stages.guidance.rounds=1 stages.diffusion.rounds=1"
    overrides += " stages.guidance.epochs=1 stages.diffusion.epochs=1"
    overrides += f" dataset.cache_dir={tmp_path / 'cache'}"
    command = [str(BIN / "flwr"), "run", str(ROOT), "here", "--stream"]
    command += ["--run-config", f'run-dir="{run_dir}" overrides="{overrides}"']
    command += ["--federation-config", "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"]
    done = subprocess.run(command, env=superlink, cwd=tmp_path, capture_output=True, text=True, timeout=800)
    said = done.stdout + done.stderr
    assert (run_dir / "final" / "model.json").exists(), said[-6000:] + (tmp_path / "superlink.log").read_text()[-3000:]
    final = load_final(run_dir)
    assert set(final.states) == {"guidance", "diffusion"}
    kinds = [event["kind"] for event in read_events(run_dir / "events.jsonl")]
    assert kinds.count("round_done") == 2
    assert kinds[-1] == "federation_done"
