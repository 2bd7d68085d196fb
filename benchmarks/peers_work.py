"""The work that all hands of ``benchmarks.peers`` do, and the clock that they do it by. Needs torch and numpy alone.

Programs of peers run it in environments of their own, where nothing of this project is installed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_diffmic.seeding import numpy_generator  # numpy alone, and what the order of batches comes from here

IMAGES, SIDE, BATCH, CLASSES, RATE, JUDGES, JUDGED = 50, 32, 10, 10, 0.05, 10, 10
_TICK = os.sysconf("SC_CLK_TCK")


class Clock:
    """Processor and wall seconds between its ticks, of this process and all that came of it.

    Processes are looked at while they live, since those of Ray are not waited for by who starts them; what one did
    between the last look and its end is not seen.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        self._seen: dict[int, float] = {}
        self._last = self._now()

    def tick(self) -> None:
        """A round has ended."""
        now = self._now()
        self.rows.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now

    def _now(self) -> tuple[float, float]:
        self._seen |= tree_seconds(os.getpid())
        own = time.process_time()  # finer than what the system says of a process
        return own + sum(seconds for pid, seconds in self._seen.items() if pid != os.getpid()), time.monotonic()


def tree_seconds(root: int) -> dict[int, float]:
    """Processor seconds so far of a process and of each that came of it and lives, by process id (Linux)."""
    parents, seconds = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(fields[1])
        seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICK
    tree, size = {root}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {pid for pid, parent in parents.items() if parent in tree}
    return {pid: seconds[pid] for pid in tree if pid in seconds}


def end_tree(root: int) -> None:
    """Kill a process with all that came of it: left behind, they would be measured with what is run next (Linux)."""
    for pid in tree_seconds(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def network() -> Any:
    """The CNN, with the same fresh weights each time."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, 48), nn.ReLU(), nn.Linear(48, CLASSES),
        )  # fmt: skip


@functools.lru_cache(maxsize=1000)
def pixels_of(site: int) -> tuple[Any, Any]:
    """Drawn pixels ``(50, 3, 32, 32)`` uint8 and labels ``(50,)`` of a site."""
    import numpy as np

    rng = np.random.default_rng(site)
    return rng.integers(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=np.uint8), rng.integers(0, CLASSES, IMAGES)


def images_of(site: int, first: int = IMAGES) -> tuple[Any, Any]:
    """Normalised images ``(n, 3, 32, 32)`` and labels ``(n,)`` of a site's first ``n``, made anew each time."""
    import torch

    pixels, labels = pixels_of(site)
    return (torch.from_numpy(pixels[:first]).float() / 255 - 0.5) / 0.25, torch.from_numpy(labels[:first])


def order_of(site: int, round_index: int) -> Any:
    """The order ``(50,)`` in which a site takes its images in a round (from 1), as this project draws it."""
    return numpy_generator(0, "order", "plain", f"site-{site}", round_index).permutation(IMAGES)


def train(model: Any, site: int, round_index: int) -> None:
    """One pass over a site's images in batches of 10 with SGD, starting from the model's present weights."""
    import torch
    import torch.nn.functional as F

    images, labels = images_of(site)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    order = torch.from_numpy(order_of(site, round_index))
    for index in order.split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()


def tell(out: str, clock: Clock, weights: Mapping[str, Any]) -> None:
    """Write a program's seconds a round and its last weights to ``out`` (a path without suffix)."""
    import numpy as np

    np.savez(f"{out}.npz", **{name: np.asarray(value) for name, value in weights.items()})
    Path(f"{out}.json").write_text(json.dumps(clock.rows))
