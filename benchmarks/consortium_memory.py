"""Memory of every process of a consortium with a model of some size: what it holds idle, the most it ever held, when.

The `paper` model has 0.5 GB of float32. A machine that runs a coordinator and three sites at once may be too
small for it: ``--latent`` makes the same model narrower, and what is held is told in multiples of the model, too.
Local updates are one step on two drawn images: what a step of training holds besides grows with the images of a step.
More than three sites take turns (``site.turn``): each would hold a request, its model and its optimizer at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.consortium_watch import Held, everybody
from fed_diffmic.config.codecs import CODECS
from tests.consortium.harness import Consortium
from tests.consortium.settings import SITES, training, write_data

SAMPLE_S = 0.2
LEAST_FREE_MB = 1200.0
DONE_S = 1500.0  # and as much again for each further site: they share the cores
AT_ONCE = 3
LATENT = 6144
TAKEN = {"approval": "rule", "models": [], "backbones": ["*"]}


def names(sites: int) -> tuple[str, ...]:
    """So many sites."""
    return (*SITES, *(f"site-{n}" for n in range(len(SITES) + 1, sites + 1)))[:sites]


def sized(model: str, rounds: int = 1, latent: int = LATENT) -> dict[str, Any]:
    """A model, one step a round, few sampling steps (which cost time, not memory).

    Args:
        model: ``tiny`` is the tests' own, ``compact`` and ``paper`` are the presets.
        rounds: of each stage.
        latent: width of ``paper``; 6144 is the preset's.
    """
    if model == "tiny":
        own = training(rounds=rounds)
        return {**own, "stage_settings": {name: {**s, "rounds": rounds} for name, s in own["stage_settings"].items()}}
    stage = {"rounds": rounds, "steps": 1, "batch_size": 2}
    wide = {"latent": latent} if model == "paper" else {}
    return {
        "seed": 5,
        "model": model,
        "stages": model,
        "model_settings": {"pretrained": "false", "sampling_steps": 2, "sampling_starts": 1, **wide},
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


@dataclass
class Measured:
    """What was seen of one run.

    Attributes:
        peaks: of its processes.
        said: how it ended.
        model_mb: of the larger of its two models.
        rounds: its ``round_done`` events.
        whole: whether it ended as it should.
    """

    peaks: Peaks
    said: str
    model_mb: float = 0.0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False


def run_once(
    folder: Path, common: dict[str, Any], sites: Sequence[str], *, heartbeat_s: float = 30.0, exchanges: str = "auto"
) -> Measured:
    """Run a consortium once, and look at its processes all the while."""
    write_data(folder / "data", sites=sites)
    bound = DONE_S * len(sites)
    made = Consortium(
        folder / "consortium", folder / "data", common, heartbeat_s=heartbeat_s, way={"poll_s": 0.5},
        run={"deadline_s": bound, "join_s": bound, "exchanges": exchanges}, sites=sites,
    )  # fmt: skip
    peaks = Peaks(made)
    begun = time.monotonic()
    lowest = free_mb()
    try:
        server = made.start_server()
        for site in sites:  # one after the other: so many programs at once take minutes to load
            made.set_policy(site, study=TAKEN, codecs=list(CODECS))
            if len(sites) > AT_ONCE:
                made.set_turn(site, folder / "turn")
            made.start_site(site)
            if len(sites) > AT_ONCE:
                made.wait_state(site, ("ready", "working"))
        while server.process.poll() is None:
            peaks.look()
            lowest = min(lowest, free_mb())
            if not peaks.idle and any(e["kind"] == "stage_started" for e in made.events.read()):
                peaks.idle = {key: held.anon_mb for key, held in peaks.held.items()}
            if lowest < LEAST_FREE_MB or time.monotonic() - begun > bound:
                why = f"{lowest:.0f} MB of the machine's memory were free, {time.monotonic() - begun:.0f} s had passed"
                return Measured(peaks, f"ended early: {why}", rounds=done_in(made))
            time.sleep(SAMPLE_S)
        sizes = {p.name: p.stat().st_size / 1e6 for p in (made.run_dir / "final").glob("*.safetensors")}
        done = done_in(made)
        rounds = [f"{e['stage']} {e['round']}: {e['seconds']:.0f} s, {e['bytes_sent'] / 1e6:.0f} MB" for e in done]
        said = f"exit code {server.process.returncode}; model: " + ", ".join(
            f"{name} {size:.1f} MB" for name, size in sorted(sizes.items())
        )
        said += f"; rounds: {'; '.join(rounds)}; at least {lowest:.0f} MB stayed free"
        return Measured(peaks, said, max(sizes.values(), default=0.0), done, server.process.returncode == 0)
    except KeyboardInterrupt:
        return Measured(peaks, f"stopped by hand after {time.monotonic() - begun:.0f} s", rounds=done_in(made))
    finally:
        made.end()


def done_in(made: Consortium) -> list[dict[str, Any]]:
    """The rounds that are over."""
    return [event for event in made.events.read() if event["kind"] == "round_done"]


def measure_memory(folder: Path, heartbeat_s: float, sites: int, latent: int) -> str:
    """Run the `paper` model once; the table."""
    found = run_once(folder, sized("paper", latent=latent), names(sites), heartbeat_s=heartbeat_s)
    return table(found.peaks, found.said, found.model_mb)


def table(peaks: Peaks, said: str, model_mb: float = 0.0) -> str:
    """Memory that is the process's own (no file pages), MB of 10**6 bytes."""
    lines = ["| process | idle MB | peak MB | more than idle, in models | when |", "|---|---|---|---|---|"]
    for key, (most, when) in sorted(peaks.peak.items()):
        idle = peaks.idle.get(key, 0.0)
        times = f"{(most - idle) / model_mb:.1f}" if model_mb else "?"
        lines.append(f"| {' '.join(key).strip()} | {idle:.0f} | {most:.0f} | {times} | {when} |")
    return "\n".join([*lines, "", f"all together at most {peaks.total:.0f} MB; {said}"])
