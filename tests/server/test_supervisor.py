"""``flower-server`` as a process: signals, kills, locks; with real sites (slow) what a kill costs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from fed_diffmic.config.compose import compose_server
from fed_diffmic.data.phantoms import write_phantoms
from fed_diffmic.errors import ModelFileError
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.certificates import load_pem_key
from fed_diffmic.provision.keys import make_site_key, public_text
from fed_diffmic.provision.roster import Roster
from fed_diffmic.release.final import load_final
from fed_diffmic.reporting.events import read_events
from fed_diffmic.reporting.rotation import LOG_BYTES
from fed_diffmic.transport.processes import free_port
from server import supervisor

BIN = Path(sys.executable).parent
STAGES = [
    "model=tiny", "stages.guidance.rounds=2", "stages.guidance.epochs=1", "stages.diffusion.rounds=0",
]  # fmt: skip
POLICY = [
    "policy=standard", "policy.runs=['*']", "policy.classes=['*']", "policy.datasets=[phantoms]", "policy.min_count=0",
]  # fmt: skip


class Processes:
    """Starts processes and ends every one of them, by its pid."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=env)
        self.started.append(process)
        return process

    def close(self):
        for process in self.started:
            process.kill()
            process.wait(20)


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path)
    yield started
    started.close()


def wait_for(condition, seconds: float, what: str):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"no {what} within {seconds:.0f} s")


def events_of(run: Path, kind: str) -> list[dict]:
    path = run / "events.jsonl"
    return [event for event in read_events(path) if event["kind"] == kind] if path.exists() else []


def listening(run: Path, times: int = 1) -> int:
    """Pid of the SuperLink once it listened so many times."""
    wait_for(lambda: len(events_of(run, "listening")) >= times, 300, "SuperLink")
    return int(events_of(run, "listening")[-1]["pid"])


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def insecure(run: Path) -> list[str]:
    return [
        str(BIN / "flower-server"), *STAGES, f"run.dir={run}", f"listen.port={free_port()}", "run.join_s=600",
        "security.insecure=true", "consortium.sites=[a]", "listen.heartbeat_s=5",
    ]  # fmt: skip


class Reached(Exception):
    """The coordinator would begin."""


def test_weights_that_cannot_be_used_are_said_before_anybody_is_waited_for(tmp_path, monkeypatch):
    """Sites may come days later; and the folder stays free, so that the remedy can be followed."""

    def begin(config, run_dir):
        raise Reached

    monkeypatch.setattr(supervisor, "_Coordinator", begin)
    (tmp_path / "w.pt").write_text("{}")
    own = [setting for setting in insecure(tmp_path / "run")[1:] if "=" in setting]
    given = compose_server(None, [*own, f"model.weights={tmp_path / 'w.pt'}"])
    with pytest.raises(ModelFileError, match="neither a safetensors file"):
        supervisor.coordinate(given)
    assert not (tmp_path / "run").exists()
    save_file(timm.create_model(given.model.guidance_backbone).state_dict(), tmp_path / "w.pt")
    with pytest.raises(Reached):
        supervisor.coordinate(given)
    (tmp_path / "w.pt").unlink()
    with pytest.raises(Reached):  # a stage of it may be done, whatever has become of the file
        supervisor.coordinate(given, resume=True)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_coordinator_alone(processes, tmp_path):
    run = tmp_path / "run"
    first = processes.start("first", *insecure(run))
    link = listening(run)

    second = processes.start("second", str(BIN / "flower-server"), "--resume", str(run))
    assert second.wait(120) == 6
    assert f"in use by process {first.pid}" in (tmp_path / "second.log").read_text()
    assert not gone(link)

    log = run / "link" / "superlink.log"
    with log.open("a") as file:
        file.write("x" * LOG_BYTES + "\n")
    wait_for(log.with_name("superlink.log.1").exists, 20, "part of the SuperLink's log that was set aside")
    assert wait_for(lambda: log.stat().st_size < LOG_BYTES, 5, "shortened log")

    first.kill()
    first.wait(10)
    wait_for(lambda: gone(link), 10, "end of the SuperLink")
    told = subprocess.run(
        [BIN / "flower-server", "status", run], capture_output=True, text=True, timeout=120, check=True
    )
    assert "not running" in told.stdout
    assert told.stdout.startswith("INSECURE")

    third = processes.start("third", str(BIN / "flower-server"), "--resume", str(run))
    link = listening(run, 2)
    third.send_signal(signal.SIGTERM)
    assert third.wait(30) == 143
    assert gone(link)
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    said = [json.loads(line)["message"] for line in (tmp_path / "first.log").read_text().splitlines()]
    assert sum(line.startswith("INSECURE") for line in said) == 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_second_signal_ends_it_at_once_and_a_run_without_sites_fails(processes, tmp_path):
    run = tmp_path / "run"
    process = processes.start("twice", *insecure(run))
    link = listening(run)
    os.kill(link, signal.SIGSTOP)  # so that a clean end would take its time
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    wait_for(lambda: gone(link), 10, "end of the SuperLink")

    late = processes.start("late", str(BIN / "flower-server"), "--resume", str(run), "run.join_s=1")
    assert late.wait(120) == 5
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert gone(listening(run, 2))


# ---- with real sites -------------------------------------------------------------------------------


class Consortium:
    """A coordinator and two sites on drawn images, over TLS."""

    def __init__(self, folder: Path, processes: Processes):
        self.folder, self.processes = folder, processes
        authority = make_authority(folder / "ca")
        certificate, key = authority.issue_server([], [], folder / "server")
        self.public_key = folder / "coordinator.pub"
        self.public_key.write_text(public_text(load_pem_key(key).public_key()) + "\n")
        self.ca, self.run, port = authority.certificate_path, folder / "run", free_port()
        roster = Roster()
        for number, name in enumerate(("alpha", "beta")):
            roster = roster.enrol(name, make_site_key(folder / name / "site.key"), "Hospital")
            write_phantoms(folder / name / "data", "dermoscopy", 48, seed=number, sites=1)
        self.roster = roster.save(folder / "roster.json")
        self.server = [
            str(BIN / "flower-server"), *STAGES, f"run.dir={self.run}", f"listen.port={port}",
            f"security.certificate={certificate}", f"security.key={key}", f"security.ca={self.ca}",
            f"security.roster={self.roster}", "listen.heartbeat_s=5", "run.deadline_s=300",
        ]  # fmt: skip
        self.port = port

    def start_server(self, *extra: str) -> subprocess.Popen[bytes]:
        return self.processes.start("server", *self.server, *extra)

    def resume(self) -> subprocess.Popen[bytes]:
        return self.processes.start("server", str(BIN / "flower-server"), "--resume", str(self.run))

    def start_sites(self, state: str = "state") -> list[subprocess.Popen[bytes]]:
        started = []
        for name in ("alpha", "beta"):
            here = self.folder / name
            config = here / "site.yaml"
            config.write_text("{}\n")
            process = self.processes.start(
                name, str(BIN / "fed-diffmic"), "client", "--config", str(config), f"site.name={name}",
                f"site.folder={here / state}", "site.device=cpu", f"coordinator.address=127.0.0.1:{self.port}",
                f"coordinator.ca={self.ca}", f"coordinator.key={here / 'site.key'}",
                f"coordinator.public_key={self.public_key}", "coordinator.heartbeat_s=5",
                "dataset=phantoms", f"dataset.root={here / 'data'}", f"dataset.cache_dir={here / 'cache'}", *POLICY,
            )  # fmt: skip
            started.append(process)
        return started

    def rounds(self) -> int:
        return len(events_of(self.run, "round_done"))


@pytest.fixture
def consortium(processes, tmp_path):
    return Consortium(tmp_path, processes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_the_superlink_and_of_the_coordinator_change_no_bit(consortium, tmp_path):
    server = consortium.start_server()
    sites = consortium.start_sites()
    assert server.wait(400) == 0
    undisturbed = load_final(consortium.run).digests
    assert not list((consortium.run / "link").glob("state.db*"))

    for site in sites:
        site.terminate()
    assert [site.wait(60) for site in sites] == [143, 143]
    consortium.start_sites("anew")  # they would answer the very same requests with the updates that they kept
    consortium.server[consortium.server.index(f"run.dir={consortium.run}")] = f"run.dir={tmp_path / 'b' / 'run'}"
    consortium.run = tmp_path / "b" / "run"  # the same name: it is part of the seeds
    server = consortium.start_server()
    os.kill(listening(consortium.run), signal.SIGKILL)  # while it waits for the sites
    wait_for(lambda: events_of(consortium.run, "round_started"), 300, "first round")
    os.kill(listening(consortium.run, 2), signal.SIGKILL)  # while they train
    wait_for(lambda: consortium.rounds() >= 1, 300, "end of the first round")
    server.kill()
    server.wait(20)
    assert consortium.resume().wait(400) == 0
    assert load_final(consortium.run).digests == undisturbed
    assert len(events_of(consortium.run, "link_lost")) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_site_removed_from_the_roster_ends_a_run_that_needs_it(consortium):
    server = consortium.start_server()
    consortium.start_sites()
    wait_for(lambda: events_of(consortium.run, "round_started"), 400, "first round")
    Roster.load(consortium.roster).revoke("beta", "left").save(consortium.roster)
    assert server.wait(300) == 5
    assert events_of(consortium.run, "site_removed")[0]["site"] == "beta"
    failed = json.loads((consortium.run / "status.json").read_text())
    assert failed["state"] == "failed"
    assert "beta" in failed["message"]
