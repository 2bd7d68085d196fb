"""What a virtual site costs: seconds a round, memory and disk against the number of sites, on drawn images.

python benchmarks/virtual_sites.py [--sites 4,25,100] [--images 2400] [--out costs.svg]

Each number of sites is a process of its own: the same images over more and more sites, a small classifier trained in
process (`run.backend=inprocess`), three rounds. Printed are the median seconds of a round, those of a site in a round,
the largest resident memory of the process, what the run's folder holds, and the ratio of the last row to the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = [
    "model=tiny",
    "stages.guidance.rounds=0",
    "stages.diffusion.rounds=0",
    "stages.plain.rounds=3",
    "stages.plain.epochs=1",
    "partition=iid",
    "partition.min_images=5",
    "run.bootstrap=0",
    "run.device=cpu",
]


def measure(sites: int, images: int, shared: Path) -> dict[str, float]:
    """Run once in this process; metrics of it."""
    from fed_diffmic.config.compose import compose
    from simulations.run import simulate

    with tempfile.TemporaryDirectory() as folder:
        own = [f"partition.sites={sites}", f"dataset.phantom_images={images}", f"dataset.root={shared / 'phantoms'}"]
        own += [f"dataset.cache_dir={shared / 'cache'}", f"run.dir={folder}/run"]
        started = time.monotonic()
        summary = simulate(compose(None, [*SETTINGS, *own]))
        total = time.monotonic() - started
        kept = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    rounds = statistics.median(row["seconds"] for row in summary["stages"]["plain"]["history"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"sites": sites, "round": rounds, "site": rounds / sites, "run": total, "MB": memory, "disk": kept / 1e6}


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Seconds of a round and memory against the number of sites."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(drawing)
    for ax, key, label in zip(
        drawing.subplots(1, 2), ("round", "MB"), ("seconds a round", "largest memory, MB"), strict=True
    ):
        ax.plot([row["sites"] for row in rows], [row[key] for row in rows], "o-")
        ax.set_xlabel("virtual sites")
        ax.set_ylabel(label)
        ax.set_ylim(0)
    drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", default="4,25,100")
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.one[0]), arguments.images, Path(arguments.one[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as shared:
        for sites in arguments.sites.split(","):
            command = [sys.executable, __file__, "--images", str(arguments.images), "--one", sites, shared]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    print("| sites | seconds a round | of a site | whole run, s | largest memory, MB | run's folder, MB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = (f"{row[key]:.3g}" for key in ("round", "site", "run", "MB", "disk"))
        print(f"| {row['sites']} | {' | '.join(cells)} |")
    first, last = rows[0], rows[-1]
    print(
        f"{last['sites']} sites over {first['sites']}: a round {last['round'] / first['round']:.2f} times as long, ",
        end="",
    )
    print(f"memory {last['MB'] / first['MB']:.2f} times")
    if arguments.out:
        plot(rows, arguments.out)


if __name__ == "__main__":
    main()
