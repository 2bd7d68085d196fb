"""What a round of virtual sites costs against the same work in other hands: ratios of one run.

python -m benchmarks.peers [--rounds 6] [--settings 10/10,100/10,100/50,1000/50] [--every 1]

The work: a CNN of 103,930 weights, 50 drawn images of 32 px at each site, one pass in batches of 10 with SGD, the mean
of the updates weighted by images. A setting is SITES/DRAWN: how many virtual sites there are, and how many are drawn in
a round. ``bare`` is a loop in PyTorch of the same work with nothing around it: no checks, no files, no messages, no
validation. ``ours`` is this project's coordinator and virtual sites in one process, with all that they keep and check;
the first ten sites judge every round (``--every``: every so many) on ten images each. Measured are processor seconds
(user and system) and wall seconds a round, the median over the rounds but the first, each in a process of its own, one
thread, the two by turns.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

IMAGES, SIDE, BATCH, CLASSES, RATE, JUDGES = 50, 32, 10, 10, 0.05, 10
SETTINGS = "10/10,100/10,100/50,1000/50"


class Clock:
    """Processor and wall seconds between its ticks, those of ended children included."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        self._last = self._now()

    def tick(self) -> None:
        """A round has ended."""
        now = self._now()
        self.rows.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now

    def _now(self) -> tuple[float, float]:
        uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(use.ru_utime + use.ru_stime for use in uses), time.monotonic()


def network() -> Any:
    """The CNN, with fresh weights."""
    from torch import nn

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


def bare(sites: int, drawn: int, rounds: int) -> Clock:
    """The work with nothing around it."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    model = network()
    held = {name: value.clone() for name, value in model.state_dict().items()}
    rng, clock = np.random.default_rng(0), Clock()
    for _ in range(rounds):
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in held.items()}
        for site in rng.choice(sites, drawn, replace=False):
            pixels, labels = pixels_of(int(site))
            images = (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.25
            model.load_state_dict(held)
            optimizer = torch.optim.SGD(model.parameters(), RATE)
            for index in np.array_split(rng.permutation(IMAGES), IMAGES // BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(images[index]), torch.from_numpy(labels[index])).backward()
                optimizer.step()
            for name, value in model.state_dict().items():
                total[name] += value.double() / drawn
        held = {name: value.float() for name, value in total.items()}
        clock.tick()
    return clock


class Pixels:
    """Drawn images, behind the image cache's one method that training uses; row ``r`` belongs to site ``r // 50``."""

    def images(self, rows: Any) -> Any:
        """Pixels of the rows."""
        import numpy as np
        import torch

        return torch.from_numpy(np.stack([pixels_of(int(row) // IMAGES)[0][int(row) % IMAGES] for row in rows]))


def ours(sites: int, drawn: int, rounds: int, metrics_every: int = 1) -> Clock:
    """The same by this project's coordinator and virtual sites, in this process, with all that they keep and check."""
    import numpy as np
    from flwr.app import Context, RecordDict

    import fed_diffmic.transport  # noqa: F401
    from fed_diffmic.config.compose import compose, to_json
    from fed_diffmic.config.spec import make_spec
    from fed_diffmic.data.site import Examples, SiteData
    from fed_diffmic.reporting.events import EventLog
    from fed_diffmic.training import stages
    from server.app import app, shared_events
    from simulations.flower_app import VirtualClientApp
    from simulations.grid import InProcessGrid

    stages.build_plain = lambda *_: network()
    every = [f"run.metrics_every={metrics_every}"] if metrics_every != 1 else []
    classes = [str(number) for number in range(CLASSES)]
    config = compose(
        None, [*TRAINING, *every, f"stages.plain.rounds={rounds}", f"strategy.participation={drawn / sites}"]
    )
    clock, names = Clock(), [f"site-{number}" for number in range(sites)]
    cache: Any = Pixels()

    def part(rows: Any, labels: Any) -> Examples:
        return Examples(rows, labels, rows.astype(str), rows.astype(np.uint64), cache)

    def source(context: Any, spec: Any, header: Any) -> SiteData:
        """50 images to train; the first ten sites judge with ten drawn beside, the others have none to judge with."""
        number = int(str(context.node_config["site"]).removeprefix("site-"))
        _, labels = pixels_of(number)
        rows = np.arange(IMAGES) + IMAGES * number
        judge = IMAGES // 5 if number < JUDGES else 0
        none = part(rows[:0], labels[:0])
        train, val = part(rows, labels.astype(np.int64)), part(rows[:judge], labels[:judge].astype(np.int64))
        return SiteData(str(context.node_config["site"]), "multiclass", tuple(classes), train, val, none)

    def observe(event: dict[str, Any]) -> None:
        if event["kind"] == "round_done":
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        spec = make_spec(config, classes=classes, task="multiclass", run_id="bench", arm="federated", device="cpu")
        run_config = {
            "config-json": to_json(config), "spec-json": spec.to_json(), "stages": "plain", "sites": "|".join(names),
            "run-dir": folder, "folder": folder,
        }  # fmt: skip
        nodes = [
            {"site": name, "partition-id": number, "memory": True, "keep-updates": False}
            for number, name in enumerate(names)
        ]
        grid = InProcessGrid(VirtualClientApp(nodes, run_config, source), nodes, run_config)
        with EventLog(Path(folder) / "events.jsonl", observers=[observe]) as events, shared_events(events):
            app(grid=grid, context=Context(1, 0, {}, RecordDict(), run_config))
    return clock


def median(rows: list[tuple[float, float]]) -> tuple[float, float]:
    """Processor and wall seconds of a round; the first one, which imports and builds, left out."""
    later = rows[1:] or rows
    return statistics.median(cpu for cpu, _ in later), statistics.median(wall for _, wall in later)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        who, sites, drawn = given.one[0], int(given.one[1]), int(given.one[2])
        more = {"metrics_every": given.every} if who == "ours" and given.every != 1 else {}
        print(json.dumps((ours if who == "ours" else bare)(sites, drawn, given.rounds, **more).rows))
        return
    print("| sites / drawn | bare, CPU s a round | ours, CPU s | ratio | bare, wall s | ours, wall s |")
    print("|---|---|---|---|---|---|")
    for setting in given.settings.split(","):
        found = {}
        for who in ("bare", "ours"):
            more = ["--rounds", str(given.rounds), "--every", str(given.every), "--one", who, *setting.split("/")]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.peers", *more], check=True, stdout=subprocess.PIPE, text=True
            )
            found[who] = median([(cpu, wall) for cpu, wall in json.loads(done.stdout.strip().splitlines()[-1])])
        (cpu, wall), (our_cpu, our_wall) = found["bare"], found["ours"]
        print(
            f"| {setting} | {cpu:.2f} | {our_cpu:.2f} | {our_cpu / cpu:.2f} | {wall:.2f} | {our_wall:.2f} |", flush=True
        )


TRAINING = [
    "model=tiny", f"model.image_side={SIDE}", "dataset.modality=none", "stages.plain.optimizer=sgd",
    "stages.plain.momentum=0", "stages.plain.weight_decay=0", "stages.plain.clip_norm=0", f"stages.plain.lr={RATE}",
    "stages.plain.schedule=constant", f"stages.plain.batch_size={BATCH}", "stages.plain.augment=false",
    "stages.plain.select=loss", "stages.plain.epochs=1", "run.device=cpu",
]  # fmt: skip

if __name__ == "__main__":
    main()
