"""How much faster are batches from the image cache than from a loader that decodes each time?

Draws phantoms (or takes the images below a folder), then times both ways of reading the same shuffled
batches, in turns, on one thread each, and prints the ratio. The first decoding is in ``build``: it pays
for itself after that part of an epoch.

    python benchmarks/cache_loading.py [--images DIR] [--count 512] [--side 112] [--batch 32]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fed_diffmic.data.cache import build_cache
from fed_diffmic.data.decode import decode
from fed_diffmic.data.phantoms import write_phantoms

ENDINGS = {".jpg", ".jpeg", ".png"}


def seconds(load: Callable[[np.ndarray], torch.Tensor], batches: list[np.ndarray]) -> float:
    """Wall time to load all batches once."""
    start = time.perf_counter()
    for batch in batches:
        load(batch)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images; without it, phantoms are drawn")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.images or write_phantoms(
            Path(scratch) / "phantoms", "dermoscopy", arguments.count, 0, side=224
        )
        paths = [str(p) for p in sorted(folder.rglob("*")) if p.suffix.lower() in ENDINGS][: arguments.count]
        start = time.perf_counter()
        cache = build_cache(paths, image_side=arguments.side, folder=Path(scratch) / "cache", workers=1)
        build = time.perf_counter() - start
        good = np.array([i for i in range(len(paths)) if i not in cache.bad])
        batches = np.array_split(np.random.default_rng(0).permutation(good), max(1, len(good) // arguments.batch))

        def decoding(batch: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.stack([decode(Path(paths[i]).read_bytes(), arguments.side) for i in batch]))

        if not torch.equal(decoding(batches[0]), cache.images(batches[0])):
            raise SystemExit("the two loaders disagree: no ratio")
        times = [(seconds(decoding, batches), seconds(cache.images, batches)) for _ in range(arguments.repeats)]
        slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"images {len(good)}, side {arguments.side}, batch {arguments.batch}, median of {arguments.repeats} runs")
    print(f"decoding loader {len(good) / slow:10,.0f} images/s")
    print(f"cached loader   {len(good) / fast:10,.0f} images/s")
    print(f"ratio           {slow / fast:10.1f}")
    print(f"build           {build:10.2f} s ({build / slow:.2f} of a decoding epoch)")


if __name__ == "__main__":
    main()
