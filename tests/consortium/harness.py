"""A consortium of real processes on this machine: data, credentials, the two commands, what they say, their end.

Everything is a process that is started here or a child of one, known by its pid; :meth:`Consortium.end` kills
them all and says what should not have been there any more. Every wait has a bound.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fed_diffmic.data.phantoms import draw
from fed_diffmic.data.phantoms.canvas import site_style
from fed_diffmic.files import read_json
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.certificates import load_pem_key
from fed_diffmic.provision.keys import make_site_key, public_text
from fed_diffmic.provision.roster import Roster
from fed_diffmic.seeding import numpy_generator

SITES = ("aurum", "birch", "cedar")
CLASSES = ["0", "1", "2"]
SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",)
IMAGE_SIDE = 48
POLL_S = 0.002
START_S = 300.0  # with both cores at work for others
BIN = Path(sys.executable).parent
OUTSIDE = "coordinator.invalid"  # the coordinator's name for a site whose own network cannot resolve it (RFC 6761)

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


class GoneError(AssertionError):
    """Something did not happen within its bound."""


def write_data(folder: Path, images: int = 21) -> None:
    """Draw ``folder/all`` (the union, with its institutions) and ``folder/<number>`` for each site's own images."""
    from PIL import Image

    union = ["image,label,patient_id,institution,split"]
    for number, site in enumerate(SITES):
        own = ["image,label,patient_id,split"]
        place = folder / str(number)
        place.mkdir(parents=True)
        for i in range(images):
            label, split = i % len(CLASSES), SPLITS[(i // len(CLASSES)) % len(SPLITS)]
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
    found += [f"model.{key}={value}" for key, value in common["model_settings"].items()]
    for stage, settings in common["stage_settings"].items():
        found += [f"stages.{stage}.{key}={value}" for key, value in settings.items()]
    found += [f"strategy.{key}={value}" for key, value in common.get("strategy_settings", {}).items()]
    return found


def environment(**more: str) -> dict[str, str]:
    """Of every process here: one thread, nothing called home, no proxy."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {**env, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1", **more}


def same_bounds() -> list[str]:
    """What a coordinator bounds by default and a simulation does not, for the simulation."""
    from fed_diffmic.config.server import ServerRunConfig

    run = ServerRunConfig()
    return [f"run.{key}={getattr(run, key)}" for key in ("max_share", "norm_rule", "norm_multiple")]


def simulation_settings(folder: Path, data: Path, common: Mapping[str, Any]) -> list[str]:
    """Of the simulation over the union of the sites' tables."""
    return [
        *overrides(common), "dataset=table", f"dataset.root={data}", "dataset.task=multiclass",
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


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Every process below this one."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *children(child)]
    return found


def wait(what: str, found: Callable[[], Any], timeout_s: float, poll_s: float = POLL_S) -> Any:
    """The first true value of ``found``.

    Raises:
        GoneError: there was none within ``timeout_s`` seconds.
    """
    until = time.monotonic() + timeout_s
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > until:
            raise GoneError(f"not within {timeout_s:g} s: {what}")
        time.sleep(poll_s)


class Lines:
    """The JSON lines of a growing file, read as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self.seen: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        with suppress(FileNotFoundError), self.path.open("rb") as stream:
            stream.seek(self._position)
            data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._position += len(whole)
            for line in whole.splitlines():
                with suppress(ValueError):  # torn by a kill
                    self.seen.append(json.loads(line))
        return self.seen


@dataclass
class Program:
    """One of the two commands, started here."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    pids: set[int] = field(default_factory=set)

    @property
    def pid(self) -> int:
        return self.process.pid

    def look(self) -> None:
        """Remember its children, so that none is missed in the end."""
        self.pids |= {self.pid, *children(self.pid)}

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout_s: float) -> int:
        """Its exit code.

        Raises:
            GoneError: it still runs after ``timeout_s`` seconds.
        """
        wait(f"the end of {self.name}\n{self.said()[-2000:]}", lambda: self.process.poll() is not None, timeout_s, 0.02)
        return int(self.process.returncode)


class Consortium:
    """A coordinator and three sites in ``folder``.

    Args:
        folder: of this test.
        data: as :func:`write_data` drew it.
        common: as :func:`training`.
        heartbeat_s: Flower's interval.
        listen, run: further settings of the coordinator.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        common: Mapping[str, Any],
        *,
        heartbeat_s: float = 4.0,
        listen: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        way: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.programs: list[Program] = []
        self.heartbeat_s = heartbeat_s
        authority = make_authority(folder / "ca")
        certificate, key = authority.issue_server(["localhost", OUTSIDE], ["127.0.0.1"], folder / "server")
        self.coordinator_key = folder / "coordinator.pub"
        self.coordinator_key.write_text(public_text(load_pem_key(key).public_key()) + "\n", encoding="utf-8")
        self.roster, roster = folder / "roster.json", Roster()
        for number, site in enumerate(SITES):
            text = make_site_key(folder / "keys" / f"{number}.key")
            roster = roster.enrol(site, text, f"Hospital {site}")
        roster.save(self.roster)
        server = {
            "seed": common["seed"],
            "consortium": {"classes": CLASSES, "task": "multiclass"},
            "listen": {"port": self.port, "heartbeat_s": heartbeat_s, **(listen or {})},
            "security": {
                "certificate": str(certificate), "key": str(key), "ca": str(authority.certificate_path),
                "roster": str(self.roster),
            },
            "run": {"deadline_s": 150.0, "join_s": 150.0, **(run or {})},
        }  # fmt: skip
        self.server_yaml = folder / "server.yaml"
        self.server_yaml.write_text(yaml.safe_dump(server, allow_unicode=True), encoding="utf-8")
        self.server_settings = [s for s in overrides(common) if not s.startswith("seed=")]
        self.site_yaml: dict[str, Path] = {}
        for number, site in enumerate(SITES):
            value = {
                "site": {"name": site, "folder": str(self.site_folder(site)), "device": "cpu", "split_seed": 5},
                "coordinator": {
                    "address": f"localhost:{self.port}", "ca": str(authority.certificate_path),
                    "key": str(folder / "keys" / f"{number}.key"),
                    "public_key": str(self.coordinator_key), "heartbeat_s": heartbeat_s, "poll_s": 0.2,
                    "retry_min_s": 0.2, "retry_max_s": 1.0, "give_up_s": 3600.0, **(way or {}),
                },
                "dataset": {"root": str(data / str(number)), "classes": CLASSES, "task": "multiclass"},
                "policy": {
                    "name": "standard", "runs": ["*"], "datasets": ["table"], "classes": ["*"],
                    "stages": ["guidance", "diffusion"], "strategies": ["fedavg"], "tensors": ["*"],
                    "dtypes": ["float32", "int64"], "max_update_norm": 1e6, "metrics": ["*"], "min_count": 0,
                    "max_rounds": 100, "max_epochs": 100.0, "max_steps": 10000, "max_seconds": 600.0,
                    "hours": ["always"], "privacy": "none", "floors": FLOORS,
                    "study": {"approval": "rule", "models": [], "backbones": ["test_resnet"]},
                },
            }  # fmt: skip
            self.site_yaml[site] = folder / f"site-{number}.yaml"
            self.site_yaml[site].write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
        self.new_run("simulation")

    def new_run(self, name: str) -> None:
        """Let the next coordinator work in a run of that name."""
        self.run_dir = self.folder / name
        self.events = Lines(self.run_dir / "events.jsonl")
        self.audit = Lines(self.run_dir / "audit.jsonl")

    def reroute(self, site: str, port: int) -> None:
        """Let a site find the coordinator at another port."""
        self.set_way(site, address=f"localhost:{port}")

    def set_way(self, site: str, **way: Any) -> None:
        """Change settings of a site's way to the coordinator, before it is started."""
        value = yaml.safe_load(self.site_yaml[site].read_text(encoding="utf-8"))
        value["coordinator"] |= way
        self.site_yaml[site].write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")

    def site_folder(self, site: str) -> Path:
        return self.folder / f"state-{SITES.index(site)}"

    # ---- processes ---------------------------------------------------------------------------
    def start(self, name: str, command: list[str], **env: str) -> Program:
        output = self.folder / f"{name}.{len(self.programs)}.out"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment(**env)
            )
        program = Program(name, process, output)
        self.programs.append(program)
        return program

    def start_server(self, *settings: str, resume: bool = False, **env: str) -> Program:
        given = ["--resume", str(self.run_dir)] if resume else ["--config", str(self.server_yaml)]
        more = [] if resume else [*self.server_settings, f"run.dir={self.run_dir}"]
        return self.start("coordinator", [str(BIN / "flower-server"), *given, *more, *settings], **env)

    def start_site(self, site: str, *settings: str, **env: str) -> Program:
        command = [str(BIN / "fed-diffmic"), "client", "--config", str(self.site_yaml[site]), *settings]
        return self.start(f"site-{SITES.index(site)}", command, **env)

    def link_pid(self) -> int:
        """The SuperLink's pid, as the last start of it was reported."""
        return int([e for e in self.events.read() if e["kind"] == "listening"][-1]["pid"])

    def site_state(self, site: str) -> dict[str, Any]:
        """What the site's SuperNode and worker say of themselves: ``node``, ``worker`` (each perhaps empty)."""
        found: dict[str, Any] = {}
        for name, file in (("node", "supernode.json"), ("worker", "worker.json")):
            try:
                found[name] = json.loads((self.site_folder(site) / "run" / file).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found[name] = {}
        return found

    def wait_event(self, kind: str, timeout_s: float = START_S, **facts: Any) -> dict[str, Any]:
        """The first event of that kind with those facts."""

        def found() -> dict[str, Any] | None:
            for program in self.programs:
                if (
                    program is self.programs[-1]
                    and program.process.poll() is not None
                    and program.name == "coordinator"
                ):
                    raise GoneError(f"the coordinator ended before {kind}:\n{program.said()[-3000:]}")
            for event in self.events.read():
                if event["kind"] == kind and all(event.get(key) == value for key, value in facts.items()):
                    return event
            return None

        return wait(f"event {kind} {facts}", found, timeout_s)

    def wait_state(self, site: str, states: tuple[str, ...], timeout_s: float = START_S) -> dict[str, Any]:
        """The site's account as soon as its worker is in one of these states."""

        def found() -> dict[str, Any] | None:
            state = self.site_state(site)
            return state if state["worker"].get("state") in states else None

        return wait(f"{site}'s worker {states}", found, timeout_s, 0.0005)

    # ---- the end -----------------------------------------------------------------------------
    def stop_sites(self, timeout_s: float = 25.0) -> list[int]:
        """SIGTERM to every site that runs; their exit codes."""
        sites = [p for p in self.programs if p.name != "coordinator" and p.process.poll() is None]
        for program in sites:
            program.look()
            program.process.send_signal(signal.SIGTERM)
        return [program.wait(timeout_s) for program in sites]

    def end(self) -> list[int]:
        """Kill whatever is left by pid; pids that outlived the program that they belonged to."""
        left: list[int] = []
        for program in self.programs:
            program.look()
            over = program.process.poll() is not None
            if not over:
                program.process.kill()
                program.process.wait(10)
            until = time.monotonic() + 5
            while any(map(alive, program.pids)) and time.monotonic() < until:
                time.sleep(0.02)
            for pid in filter(alive, program.pids):
                left.append(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return left

    def tails(self) -> str:
        """The last words of everybody, for a failed test."""
        logs = [p.output for p in self.programs] + sorted(self.folder.glob("state-*/logs/*"))
        logs += sorted(self.run_dir.glob("link/*.log"))
        parts = [f"--- {path.relative_to(self.folder)}\n{path.read_text(errors='replace')[-1500:]}" for path in logs]
        kinds = [f"{e.get('elapsed')} {e['kind']} {e.get('site', '')} {e.get('stage', '')} {e.get('round', '')}"
                 for e in self.events.read()[-25:]]  # fmt: skip
        return "\n".join([*parts, "--- events", *kinds])


@contextmanager
def consortium(folder: Path, data: Path, common: Mapping[str, Any], **settings: Any) -> Iterator[Consortium]:
    """A consortium whose processes are gone afterwards; what they said goes with a failure."""
    made = Consortium(folder, data, common, **settings)
    try:
        yield made
    except BaseException as error:
        with suppress(Exception):
            error.add_note(made.tails())
        raise
    finally:
        left = made.end()
    assert not left, f"processes outlived their supervisor: {left}"


def summary(run: Path) -> dict[str, Any]:
    """The coordinator's own summary."""
    return dict(read_json(run / "summary.json"))
