"""A consortium of real processes on this machine: data, credentials, the two commands, what they say, their end.

Everything is a process that is started here or a child of one, known by its pid; :meth:`Consortium.end` kills
them all and says what should not have been there any more. Every wait has a bound.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from fed_diffmic.files import read_json
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.certificates import load_pem_key
from fed_diffmic.provision.keys import make_site_key, public_text
from fed_diffmic.provision.roster import Roster
from tests.consortium.programs import BIN, START_S, GoneError, Lines, Program, alive, environment, free_port, wait
from tests.consortium.settings import CLASSES, FLOORS, SITES, overrides

OUTSIDE = "coordinator.invalid"  # the coordinator's name for a site whose own network cannot resolve it (RFC 6761)


class Consortium:
    """A coordinator and its sites in ``folder``.

    Args:
        folder: of this test.
        data: as :func:`write_data` drew it.
        common: as :func:`training`.
        heartbeat_s: Flower's interval.
        listen, run: further settings of the coordinator.
        sites: their names, in the order of the data's folders.
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
        sites: Sequence[str] = SITES,
    ) -> None:
        self.folder, self.sites = folder, tuple(sites)
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.programs: list[Program] = []
        self.heartbeat_s = heartbeat_s
        authority = make_authority(folder / "ca")
        certificate, key = authority.issue_server(["localhost", OUTSIDE], ["127.0.0.1"], folder / "server")
        self.coordinator_key = folder / "coordinator.pub"
        self.coordinator_key.write_text(public_text(load_pem_key(key).public_key()) + "\n", encoding="utf-8")
        self.roster, roster = folder / "roster.json", Roster()
        for number, site in enumerate(self.sites):
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
            "run": {"deadline_s": 150.0, "join_s": 150.0, "deliver_s": 20.0, **(run or {})},
        }  # fmt: skip
        self.server_yaml = folder / "server.yaml"
        self.server_yaml.write_text(yaml.safe_dump(server, allow_unicode=True), encoding="utf-8")
        self.server_settings = [s for s in overrides(common) if not s.startswith("seed=")]
        self.site_yaml: dict[str, Path] = {}
        for number, site in enumerate(self.sites):
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
        self._set(site, "coordinator", way)

    def set_policy(self, site: str, **rules: Any) -> None:
        """Change rules of a site's policy, before it is started."""
        self._set(site, "policy", rules)

    def set_turn(self, site: str, file: Path) -> None:
        """Let a site take turns with the others that name this file, before it is started."""
        self._set(site, "site", {"turn": str(file)})

    def _set(self, site: str, group: str, values: Mapping[str, Any]) -> None:
        value = yaml.safe_load(self.site_yaml[site].read_text(encoding="utf-8"))
        value[group] |= values
        self.site_yaml[site].write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")

    def site_folder(self, site: str) -> Path:
        return self.folder / f"state-{self.sites.index(site)}"

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
        return self.start(f"site-{self.sites.index(site)}", command, **env)

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
