"""Peak memory of ``fed-diffmic predict`` at few and at many images.

``python -m benchmarks.predict_memory [--run DIR] [--counts 10,10000] [--batch 64]``: one process for each count, on
pictures of noise (sixteen, under as many names as are asked for), its table to nowhere. Prints the seconds and the peak
resident memory of each, and what each further image costs. Without ``--run`` the preset ``tiny`` with random weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.serve import random_model

PICTURES = 16


def pictures(folder: Path, count: int, side: int = 96) -> Path:
    """A folder of so many names of the same few pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06d}.png"
        if number < PICTURES:
            Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(path)
        else:
            os.link(folder / f"{number % PICTURES:06d}.png", path)
    return folder


def peak(run: Path, images: Path, batch: int) -> tuple[float, float]:
    """Seconds, and MiB of peak resident memory, of one process that predicts a folder."""
    command = [sys.executable, "-m", "fed_diffmic.cli", "predict", "--run", str(run), "--batch", str(batch)]
    command += [str(images), "--csv", os.devnull]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"predict failed: {' '.join(command)}")
    return time.monotonic() - started, used.ru_maxrss / 1024  # KiB on Linux


def main() -> None:
    """Print one line for each number of images, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run")
    parser.add_argument("--counts", default="10,10000", help="numbers of images")
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or Path(folder) / "run"
        if given.run is None:
            run.mkdir()
            random_model(run, "tiny")
        found = {}
        for count in map(int, given.counts.split(",")):
            seconds, found[count] = peak(run, pictures(Path(folder) / str(count), count), given.batch)
            print(f"{count} images: {found[count]:.0f} MiB at most, {seconds:.0f} s", flush=True)
    few, many = min(found), max(found)
    if few < many:
        print(f"each further image: {1024 * (found[many] - found[few]) / (many - few):.2f} KiB")


if __name__ == "__main__":
    main()
