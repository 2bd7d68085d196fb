"""What a start costs before anything is trained: processor seconds of ``--help`` and up to ``simulate``'s first round.

    python -m benchmarks.start [--repeats 2]

Each in a process of its own, user and system seconds, the least of the repeats. The first round is that of a small
simulation on drawn images (``model=tiny``, two sites, one step); whether torch's compiler
was loaded on the way is said too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

HELP = """
import resource, sys
from fed_diffmic.cli import main
try:
    main(["--help"])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""
FIRST = """
import json, os, resource, sys
from fed_diffmic.reporting.events import EventLog
emit = EventLog.emit
def spent():
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)
times = {"import": spent()}
def seen(self, kind, **facts):
    event = emit(self, kind, **facts)
    times.setdefault(kind, spent())
    if kind == "round_done":
        times["compiler"] = "torch._dynamo" in sys.modules
        print(json.dumps(times), file=sys.stderr, flush=True)
        os._exit(0)
    return event
EventLog.emit = seen
from fed_diffmic.cli import main
main(sys.argv[1:])
"""
SIMULATION = [
    "simulate", "dataset=phantoms", "dataset.phantom_images=96", "model=tiny", "stages=tiny", "partition.sites=2",
    "stages.guidance.steps=1", "stages.guidance.rounds=1", "run.device=cpu", "run.bootstrap=0",
]  # fmt: skip


def of_help() -> float:
    """Processor seconds of ``fed-diffmic --help``."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=600)
    return float(done.stderr.split()[-1])


def of_first_round(settings: list[str]) -> dict[str, float]:
    """Processor seconds since the start at each kind of event, the first of its kind, up to a round's end."""
    with tempfile.TemporaryDirectory() as folder:
        more = [f"run.dir={folder}/run", f"dataset.cache_dir={folder}/cache"]
        done = subprocess.run(
            [sys.executable, "-c", FIRST, *settings, *more], capture_output=True, text=True, timeout=1200, cwd=folder
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith('{"import"')]
        if not lines:
            raise SystemExit(f"no round ended: {done.stderr[-2000:]}{done.stdout[-500:]}")
        found: dict[str, float] = json.loads(lines[-1])
        return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("settings", nargs="*", help="of the simulation, in place of the small one's")
    given = parser.parse_args()
    print(f"fed-diffmic --help            {min(of_help() for _ in range(given.repeats)):6.2f} s")
    runs = [of_first_round(given.settings or SIMULATION) for _ in range(given.repeats)]
    best = min(runs, key=lambda times: times["round_done"])
    for kind, seconds in best.items():
        if kind != "compiler":
            print(f"simulate, up to {kind:<14}{seconds:6.2f} s")
    print(f"torch's compiler loaded       {'yes' if best['compiler'] else 'no'}")


if __name__ == "__main__":
    main()
