"""A soak of the consortium: runs one after the other, processes killed at random, metrics of all that lives."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.consortium_watch import Held, born, everybody, folder_bytes, look
from fed_diffmic.seeding import numpy_generator
from tests.consortium.harness import SITES, Consortium, Program, children, final_weights, simulate, training, write_data

KINDS = ("SuperLink", "coordinator", "worker", "SuperNode", "supervisor")
STRUCK = SITES[:2]  # the third is left alone, so that its processes grow old
EVERY_S = (40.0, 110.0)
SAMPLE_S = 5.0
LOADED_S = 60.0  # a process that is younger may still be loading
LAST_RUN_S = 420.0
SAMPLES, STORY = "samples.jsonl", "story.jsonl"


class Soak:
    """The consortium, what befalls it, and what is written down.

    Args:
        folder: of everything; new.
        minutes: during which processes are killed; the run under way is then left to end.
        seed: of who is killed and when.
        heartbeat_s: Flower's interval.
    """

    def __init__(self, folder: Path, minutes: float, seed: int, heartbeat_s: float) -> None:
        self.folder, self.minutes = folder, minutes
        folder.mkdir(parents=True, exist_ok=False)
        self.rng = numpy_generator(seed, "soak")
        self.common = training(rounds=4)
        self.common["stage_settings"]["diffusion"]["rounds"] = 2
        write_data(folder / "data")
        self.reference = final_weights(simulate(folder / "undisturbed", folder / "data", self.common))
        limits = {"deadline_s": 900.0, "join_s": 600.0, "restarts": 1000}
        self.made = Consortium(folder / "consortium", folder / "data", self.common, heartbeat_s=heartbeat_s, run=limits)
        self.begun = time.monotonic()
        self.sites: dict[str, Program] = {}
        self.server: Program | None = None
        self.killed: set[int] = set()  # programs of ours that we killed
        self.seen: dict[tuple[int, int], Held] = {}
        self.runs = 0

    def note(self, what: str, **facts: Any) -> None:
        """A line of the story."""
        line = {"s": round(time.monotonic() - self.begun, 1), "what": what, **facts}
        with (self.folder / STORY).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def over(self) -> bool:
        """Whether the time of the kills is over."""
        return time.monotonic() - self.begun > self.minutes * 60

    def run(self) -> bool:
        """Everything; whether all was as it should be."""
        good = True
        try:
            next_kill, next_sample = self.pause(), 0.0
            self.begin_run()
            while self.server is not None:
                now = time.monotonic() - self.begun
                if now >= next_sample:
                    self.sample(now)
                    next_sample = now + SAMPLE_S
                if now >= next_kill and not self.over() and self.kill():
                    next_kill = now + self.pause()
                good = self.care() and good
                if now > self.minutes * 60 + LAST_RUN_S:
                    self.note("the last run did not end in its time")
                    good = False
                    break
                time.sleep(0.1)
            good = self.stop() and good
        finally:
            self.end()
        return good

    def pause(self) -> float:
        """Seconds to the next kill."""
        return float(self.rng.uniform(*EVERY_S))

    # ---- what befalls it -------------------------------------------------------------------
    def kill(self) -> bool:
        """SIGKILL one process; false where it is just not there (and is chosen again)."""
        kind = KINDS[int(self.rng.integers(len(KINDS)))]
        site = STRUCK[int(self.rng.integers(len(STRUCK)))]
        target = self.target(kind, site)
        if target is None:
            return False
        list(self.lives())  # so that its children are known, should they outlive it
        if kind in ("coordinator", "supervisor"):
            self.killed.add(target)
        os.kill(target, signal.SIGKILL)
        self.note(
            "kill", kind=kind, site=site if kind in ("worker", "SuperNode", "supervisor") else "", at=self.place()
        )
        return True

    def target(self, kind: str, site: str) -> int | None:
        """The pid to kill; none where there is none now."""
        program = self.server if kind in ("coordinator", "SuperLink") else self.sites[site]
        if program is None or program.process.poll() is not None:
            return None
        if kind in ("coordinator", "supervisor"):
            return program.pid
        found = [held.pid for held in map(look, children(program.pid)) if held is not None and held.role == kind]
        return found[0] if found else None

    def place(self) -> str:
        """The last thing that the coordinator said."""
        events = self.made.events.read()
        return f"{events[-1]['kind']} {events[-1].get('stage', '')} {events[-1].get('round', '')}" if events else ""

    # ---- who starts again what it started --------------------------------------------------
    def begin_run(self) -> None:
        """The next run, in a folder of its own."""
        self.runs += 1
        self.run_begun = time.monotonic()
        self.made.new_run(f"run-{self.runs}")
        self.server = self.made.start_server()
        self.note("run begins", run=self.runs)

    def care(self) -> bool:
        """What an init system does; and look at a run that ended."""
        good = True
        for site in SITES:
            program = self.sites.get(site)
            if program is not None and program.process.poll() is not None:
                good = self.ended(program) and good
            if program is None or program.process.poll() is not None:
                self.sites[site] = self.made.start_site(site)
        server = self.server
        if server is None or server.process.poll() is None:
            return good
        if server.process.returncode == 0:
            self.made.programs.remove(server)
            return self.run_ended() and good
        good = self.ended(server) and good
        self.server = self.made.start_server(resume=(self.made.run_dir / "config.yaml").exists())
        return good

    def ended(self, program: Program) -> bool:
        """A program that is no more; whether we did it. Its number may become a stranger's: forget it."""
        self.made.programs.remove(program)
        if program.pid in self.killed:
            self.killed.discard(program.pid)
            return True
        self.note("ended by itself", name=program.name, code=program.process.returncode, said=program.said()[-1500:])
        return False

    def run_ended(self) -> bool:
        """Compare its weights; begin the next run or none."""
        equal = final_weights(self.made.run_dir) == self.reference
        kinds = Counter(event["kind"] for event in self.made.events.read())
        self.note(
            "run ended", run=self.runs, equal=equal, seconds=round(time.monotonic() - self.run_begun, 1),
            rounds=kinds["round_done"], resumed=kinds["resumed"], links_lost=kinds["link_lost"],
        )  # fmt: skip
        self.server = None
        if not self.over():
            self.begin_run()
        return equal

    # ---- what lives ------------------------------------------------------------------------
    def lives(self) -> Iterable[Held]:
        """Every process, remembered."""
        for held in everybody(self.made):
            self.seen[held.pid, held.born] = held
            yield held

    def sample(self, now: float) -> None:
        """One line: every process, and who lives without anybody who minds it."""
        lives = list(self.lives())
        known = {(held.pid, held.born) for held in lives}
        strays = [held.role for key, held in self.seen.items() if key not in known and born(held.pid) == held.born]
        line = {
            "s": round(now, 1),
            "processes": [held.facts() for held in lives],
            "strays": strays,
            "site_bytes": {site: folder_bytes(self.made.site_folder(site)) for site in SITES},
        }
        with (self.folder / SAMPLES).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def stop(self) -> bool:
        """SIGTERM to the sites; true where each ended so, and nothing is left."""
        for program in self.sites.values():
            program.process.terminate()
        codes = [program.wait(30) for program in self.sites.values()]
        time.sleep(1)
        left = [held.role for held in self.seen.values() if born(held.pid) == held.born]
        self.note("stopped", codes=codes, left=left)
        return codes == [143] * len(codes) and not left

    def end(self) -> None:
        """Whatever happened: kill what was seen and still lives."""
        for program in self.made.programs:
            if program.process.poll() is None:
                program.process.kill()
                program.process.wait(10)
        for held in self.seen.values():
            if born(held.pid) == held.born:
                os.kill(held.pid, signal.SIGKILL)


def table(folder: Path) -> str:
    """What the soak found, from its files (also of one that still goes on)."""
    samples = [json.loads(line) for line in (folder / SAMPLES).read_text(encoding="utf-8").splitlines()]
    first_seen: dict[tuple[int, int], float] = {}
    for sample in samples:
        for p in sample["processes"]:
            p["age"] = sample["s"] - first_seen.setdefault((p["pid"], p["born"]), sample["s"])
    story = [json.loads(line) for line in (folder / STORY).read_text(encoding="utf-8").splitlines()]
    kills = Counter(line["kind"] for line in story if line["what"] == "kill")
    runs = [line for line in story if line["what"] == "run ended"]
    lines = [
        f"{samples[-1]['s'] / 60:.1f} minutes, {sum(kills.values())} kills ("
        + ", ".join(f"{kind} {n}" for kind, n in sorted(kills.items()))
        + f"); {len(runs)} runs of {runs[0]['rounds'] if runs else 0} rounds ended,"
        f" {sum(line['equal'] for line in runs)} with the weights of the undisturbed run, bit for bit;"
        f" programs that ended by themselves: {sum(line['what'] == 'ended by itself' for line in story)};"
        f" processes left over in any sample: {sum(len(s['strays']) for s in samples)}",
        "",
        "| process (those older than a minute) | resident MB, first / last quarter | largest | descriptors | threads |",
        "|---|---|---|---|---|",
    ]
    for role, who in (("coordinator", ""), ("SuperLink", ""), ("supervisor", "struck"), ("SuperNode", "struck"),
                      ("worker", "struck"), ("supervisor", "left alone"), ("SuperNode", "left alone"),
                      ("worker", "left alone")):  # fmt: skip
        lines.append(_row(samples, role, who))
    counts = [len(s["processes"]) for s in samples]
    quarter = max(1, len(samples) // 4)
    lines += ["", "The worker that was left alone, resident MB every three minutes: " + ", ".join(alone(samples))]
    lines.append("")
    lines.append(
        f"processes in all: {statistics.median(counts[:quarter]):.0f} / {statistics.median(counts[-quarter:]):.0f},"
        f" at most {max(counts)}; bytes in the folder of the site left alone:"
        f" {samples[quarter]['site_bytes'][SITES[2]] / 1e6:.1f} / {samples[-1]['site_bytes'][SITES[2]] / 1e6:.1f} MB"
    )
    return "\n".join(lines)


def alone(samples: list[dict[str, Any]], every_s: float = 180.0) -> list[str]:
    """Of the worker of the site that is left alone."""
    found: dict[int, float] = {}
    for sample in samples:
        for p in sample["processes"]:
            if p["role"] == "worker" and p["site"] == SITES[2]:
                found.setdefault(int(sample["s"] // every_s), p["rss_mb"])
    return [f"{value:.0f}" for _, value in sorted(found.items())]


def _row(samples: list[dict[str, Any]], role: str, who: str) -> str:
    wanted = None if not who else STRUCK if who == "struck" else SITES[2:]

    def chosen(part: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [p for s in part for p in s["processes"] if p["role"] == role and p["age"] >= LOADED_S]
        return [p for p in rows if wanted is None or p["site"] in wanted]

    quarter = max(1, len(samples) // 4)
    first, last, rows = chosen(samples[:quarter]), chosen(samples[-quarter:]), chosen(samples)

    def pair(key: str) -> str:
        parts = (first, last)
        return " / ".join(f"{statistics.median(p[key] for p in part):.0f}" if part else "none" for part in parts)

    name = f"{role}, {who}" if who else role
    largest = max((p["rss_mb"] for p in rows), default=0.0)
    return f"| {name} | {pair('rss_mb')} | {largest:.0f} | {pair('descriptors')} | {pair('threads')} |"
