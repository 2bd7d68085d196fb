"""Memory of every process of a consortium with a large model: what it holds idle, the most it ever held, and when.

The `paper` model has 0.5 GB of float32. A machine that runs a coordinator and three sites at once may be too
small for it: ``--latent`` makes the same model narrower, and what is held is told in multiples of the model, too.
Local updates are one step on two drawn images: what a step of training holds besides grows with the images of a step.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.consortium_watch import Held, everybody
from tests.consortium.harness import SITES, Consortium, write_data

SAMPLE_S = 0.2
LEAST_FREE_MB = 1200.0
DONE_S = 1500.0  # and as much again for each further site: they share the cores


def paper(latent: int) -> dict[str, Any]:
    """The `paper` model, one step a round, few sampling steps (which cost time, not memory)."""
    stage = {"rounds": 1, "steps": 1, "batch_size": 2}
    return {
        "seed": 5,
        "model": "paper",
        "stages": "paper",
        "model_settings": {"pretrained": "false", "latent": latent, "sampling_steps": 2, "sampling_starts": 1},
        "stage_settings": {"guidance": stage, "diffusion": stage},
    }


def free_mb() -> float:
    """What the machine can still give."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    found = next(line for line in lines if line.startswith("MemAvailable"))
    return int(found.split()[1]) * 1024 / 1e6


class Peaks:
    """The most that each process held, and what was going on."""

    def __init__(self, made: Consortium) -> None:
        self.made = made
        self.idle: dict[tuple[str, str], float] = {}
        self.peak: dict[tuple[str, str], tuple[float, str]] = {}
        self.held: dict[tuple[str, str], Held] = {}
        self.total = 0.0

    def look(self) -> None:
        """One look at everybody."""
        total = 0.0
        for held in everybody(self.made):
            if held.role == "other":
                continue
            key = (held.role, held.site)
            total += held.anon_mb
            self.held[key] = held
            if held.anon_mb > self.peak.get(key, (0.0, ""))[0]:
                self.peak[key] = (held.anon_mb, self.doing(held.site))
        self.total = max(self.total, total)

    def doing(self, site: str) -> str:
        """The last line of the coordinator's log, and what the site's worker says."""
        lines = self.made.audit.read()
        facts = lines[-1]["facts"] if lines else {}
        word = (
            f"{facts.get('stage', '')} {lines[-1]['kind']} {facts.get('task', facts.get('reply', ''))}" if lines else ""
        )
        own = self.made.site_state(site)["worker"].get("state", "") if site else ""
        return f"{word.strip()}{', worker ' + own if own else ''}"


def measure_memory(folder: Path, heartbeat_s: float, sites: int, latent: int) -> str:
    """Run it once; the table."""
    write_data(folder / "data")
    bound = DONE_S * sites
    made = Consortium(
        folder / "consortium", folder / "data", paper(latent), heartbeat_s=heartbeat_s, way={"poll_s": 0.5},
        run={"deadline_s": bound, "join_s": bound},
    )  # fmt: skip
    peaks = Peaks(made)
    begun = time.monotonic()
    lowest = free_mb()
    try:
        server = made.start_server(f"consortium.sites=[{','.join(SITES[:sites])}]")
        for site in SITES[:sites]:
            made.start_site(site)
        while server.process.poll() is None:
            peaks.look()
            lowest = min(lowest, free_mb())
            if not peaks.idle and any(e["kind"] == "stage_started" for e in made.events.read()):
                peaks.idle = {key: held.anon_mb for key, held in peaks.held.items()}
            if lowest < LEAST_FREE_MB or time.monotonic() - begun > bound:
                return table(peaks, f"ended early: {lowest:.0f} MB of the machine's memory were free, "
                                    f"{time.monotonic() - begun:.0f} s had passed")  # fmt: skip
            time.sleep(SAMPLE_S)
        sizes = {p.name: p.stat().st_size / 1e6 for p in (made.run_dir / "final").glob("*.safetensors")}
        done = [e for e in made.events.read() if e["kind"] == "round_done"]
        rounds = [f"{e['stage']} {e['round']}: {e['seconds']:.0f} s, {e['bytes_sent'] / 1e6:.0f} MB" for e in done]
        said = f"exit code {server.process.returncode}; model: " + ", ".join(
            f"{name} {size:.1f} MB" for name, size in sorted(sizes.items())
        )
        return table(peaks, f"{said}; rounds: {'; '.join(rounds)}; at least {lowest:.0f} MB stayed free",
                     max(sizes.values(), default=0.0))  # fmt: skip
    except KeyboardInterrupt:
        return table(peaks, f"stopped by hand after {time.monotonic() - begun:.0f} s")
    finally:
        made.end()


def table(peaks: Peaks, said: str, model_mb: float = 0.0) -> str:
    """Memory that is the process's own (no file pages), MB of 10**6 bytes."""
    lines = ["| process | idle MB | peak MB | more than idle, in models | when |", "|---|---|---|---|---|"]
    for key, (most, when) in sorted(peaks.peak.items()):
        idle = peaks.idle.get(key, 0.0)
        times = f"{(most - idle) / model_mb:.1f}" if model_mb else "?"
        lines.append(f"| {' '.join(key).strip()} | {idle:.0f} | {most:.0f} | {times} | {when} |")
    return "\n".join([*lines, "", f"all together at most {peaks.total:.0f} MB; {said}"])
