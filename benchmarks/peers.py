"""What a round of virtual sites costs against the same work in other hands: ratios of one run.

python -m benchmarks.peers [--rounds 6] [--settings 10/10,100/10,100/50,1000/50] [--who bare,ours,pfl,flower]
    [--every 1] [--pfl-python PATH] [--flower-python PATH]

The work: a CNN of 103,930 weights, 50 drawn images of 32 px at each site, one pass in batches of 10 with SGD, the mean
of the updates weighted by images; ten sites judge each round's weights on ten images each. A setting is SITES/DRAWN:
how many virtual sites there are, and how many are drawn in a round. ``bare`` is a loop in PyTorch of the same work with
nothing around it: no checks, no files, no messages, no judging. ``ours`` is this project's coordinator and virtual
sites in one process, with all that they keep and check; the first ten sites judge every round (``--every``: every so
many). ``pfl`` is pfl-research, ``flower`` is stock Flower's simulation with two of Ray's actors; each in the Python
that is named, and "not installed" where that has none. They are the group ``peers`` of pyproject.toml and no part of
what is set up:

    uv venv build/peers && uv pip install --python build/peers/bin/python --group peers
    python -m benchmarks.peers --pfl-python build/peers/bin/python --flower-python build/peers/bin/python

Measured are processor seconds (user and system, of all processes) and wall seconds a round, the median over the rounds
but the first, each in a process of its own, one thread a process, on at most two cores, one after the other. All start
from the same weights and take a site's images in the same order, so that where every site is drawn the last weights
must agree: the largest difference from those of ``bare`` is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers_work import (
    BATCH,
    CLASSES,
    IMAGES,
    JUDGED,
    JUDGES,
    RATE,
    SIDE,
    Clock,
    end_tree,
    network,
    pixels_of,
    tell,
    train,
)

SETTINGS = "10/10,100/10,100/50,1000/50"
LIMIT = 1200  # seconds for one program: Ray that lost a process of its own waits for ever
Figures = tuple[float, float]


def bare(sites: int, drawn: int, rounds: int, out: str) -> None:
    """The work with nothing around it."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    model = network()
    held = {name: value.clone() for name, value in model.state_dict().items()}
    rng, clock = np.random.default_rng(0), Clock()
    for index in range(1, rounds + 1):
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in held.items()}
        for site in rng.choice(sites, drawn, replace=False):
            model.load_state_dict(held)
            train(model, int(site), index)
            for name, value in model.state_dict().items():
                total[name] += value.double() / drawn
        held = {name: value.float() for name, value in total.items()}
        clock.tick()
    tell(out, clock, held)


class Pixels:
    """Drawn images, behind the image cache's one method that training uses; row ``r`` belongs to site ``r // 50``."""

    def images(self, rows: Any) -> Any:
        """Pixels of the rows."""
        import numpy as np
        import torch

        return torch.from_numpy(np.stack([pixels_of(int(row) // IMAGES)[0][int(row) % IMAGES] for row in rows]))


def ours(sites: int, drawn: int, rounds: int, out: str, metrics_every: int = 1) -> None:
    """The same by this project's coordinator and virtual sites, in this process, with all that they keep and check."""
    import numpy as np
    from flwr.app import Context, RecordDict

    import fed_diffmic.transport  # noqa: F401
    from fed_diffmic.config.compose import compose, to_json
    from fed_diffmic.config.spec import make_spec
    from fed_diffmic.data.site import Examples, SiteData
    from fed_diffmic.reporting.events import EventLog
    from fed_diffmic.training import stages
    from server import rounds as server_rounds
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
    last: dict[str, Any] = {}
    aggregate = server_rounds.aggregate

    def noting(run: Any, work: Any, answer: Any, noise: Any) -> dict[str, int]:
        """The aggregate, with its weights noted: the finished model is the best round's, which need not be the last."""
        examples = aggregate(run, work, answer, noise)
        last.update(work.progress.current)
        return examples

    server_rounds.aggregate = noting

    def part(rows: Any, labels: Any) -> Examples:
        return Examples(rows, labels, rows.astype(str), rows.astype(np.uint64), cache)

    def source(context: Any, spec: Any, header: Any) -> SiteData:
        """50 images to train; the first ten sites judge with ten drawn beside, the others have none to judge with."""
        number = int(str(context.node_config["site"]).removeprefix("site-"))
        _, labels = pixels_of(number)
        rows = np.arange(IMAGES) + IMAGES * number
        judge = JUDGED if number < JUDGES else 0
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
        with EventLog(Path(folder) / "events.jsonl", observers=[observe], later=True) as events, shared_events(events):
            app(grid=grid, context=Context(1, 0, {}, RecordDict(), run_config))
    tell(out, clock, last)


def median(rows: Sequence[Sequence[float]]) -> Figures:
    """Processor and wall seconds of a round; the first one, which imports and builds, left out."""
    later = rows[1:] or rows
    return statistics.median(cpu for cpu, _ in later), statistics.median(wall for _, wall in later)


def installed(python: str, module: str) -> bool:
    """Whether a Python has a module, which is looked for and not loaded."""
    asked = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-c", asked], check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def measured(command: Sequence[str], out: Path) -> tuple[Figures, dict[str, Any]] | None:
    """Run a program of the work: its figures and its last weights; none, and why on stderr, where it failed."""
    import numpy as np

    cores = sorted(os.sched_getaffinity(0))[:2]
    said = out.with_suffix(".log")
    with (
        said.open("w") as log,
        subprocess.Popen(
            [*command, str(out)],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            start_new_session=True,
        ) as program,
    ):
        try:
            failed = program.wait(LIMIT)
        except subprocess.TimeoutExpired:
            failed = 1
            end_tree(program.pid)
    if failed:
        print(f"{' '.join(command)} failed or took over {LIMIT} s:\n{said.read_text()[-2000:]}", file=sys.stderr)
        return None
    with np.load(f"{out}.npz") as weights:
        found = {name: weights[name] for name in weights.files}
    return median(json.loads(Path(f"{out}.json").read_text())), found


def difference(weights: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest difference of a weight.

    Raises:
        SystemExit: they are not of the same network.
    """
    if set(weights) != set(other) or not weights:
        raise SystemExit(f"not the same network: {sorted(weights)} and {sorted(other)}")
    return max(float(abs(weights[name] - other[name]).max()) for name in weights)


def row(setting: str, commands: Mapping[str, Sequence[str]], folder: Path) -> str:
    """A setting's row of the table: each one's seconds, ours over each other's, and how far the weights are apart."""
    found: dict[str, tuple[Figures, dict[str, Any]]] = {}
    for who, command in commands.items():
        seen = measured(command, folder / f"{who}-{setting.replace('/', '-')}") if command else None
        if seen is not None:
            found[who] = seen
    cells = []
    for who in commands:
        if who not in found:
            cells += ["failed" if commands[who] else "not installed"] + ([""] if who != "ours" else [])
            continue
        (cpu, wall), _ = found[who]
        ratio = ""
        if "ours" in found and who != "ours":
            (ours_cpu, ours_wall), _ = found["ours"]
            ratio = f"{ours_cpu / cpu:.2f}, wall {ours_wall / wall:.2f}"
        cells += [f"{cpu:.2f}, wall {wall:.2f}"] + ([ratio] if who != "ours" else [])
    sites, drawn = setting.split("/")
    apart = "not all drawn"
    if sites == drawn and "bare" in found:
        own = found["bare"][1]
        apart = ", ".join(
            f"{who} {difference(own, weights):.1e}" for who, (_, weights) in found.items() if who != "bare"
        )
    return f"| {' | '.join([setting, *cells, apart])} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--who", default="bare,ours,pfl,flower")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--pfl-python", default=sys.executable)
    parser.add_argument("--flower-python", default=sys.executable)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        who, sites, drawn, out = given.one
        more = {"metrics_every": given.every} if who == "ours" and given.every != 1 else {}
        (ours if who == "ours" else bare)(int(sites), int(drawn), given.rounds, out, **more)
        return
    here = [sys.executable, "-m", "benchmarks.peers", "--rounds", str(given.rounds), "--every", str(given.every)]
    peers = {"pfl": (given.pfl_python, ["pfl"]), "flower": (given.flower_python, ["flwr", "ray"])}
    names = given.who.split(",")
    there = {who: all(installed(peers[who][0], module) for module in peers[who][1]) for who in names if who in peers}
    heads = [f"{who}, CPU s a round | ours / {who}" if who != "ours" else "ours, CPU s a round" for who in names]
    print(f"| sites / drawn | {' | '.join(heads)} | weights from bare's |")
    print("|---" * (2 + sum(1 if who == "ours" else 2 for who in names)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for setting in given.settings.split(","):
            sizes = setting.split("/")
            commands: dict[str, list[str]] = {}
            for who in names:
                if who in peers:
                    run = [peers[who][0], "-m", f"benchmarks.peers_{who}", *sizes, str(given.rounds)]
                    commands[who] = run if there[who] else []
                else:
                    commands[who] = [*here, "--one", who, *sizes]
            print(row(setting, commands, Path(folder)), flush=True)


TRAINING = [
    "model=tiny", f"model.image_side={SIDE}", "dataset.modality=none",
    "dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.25,0.25,0.25]", "stages.plain.optimizer=sgd",
    "stages.plain.loss=cross_entropy",
    "stages.plain.momentum=0", "stages.plain.weight_decay=0", "stages.plain.clip_norm=0", f"stages.plain.lr={RATE}",
    "stages.plain.schedule=constant", f"stages.plain.batch_size={BATCH}", "stages.plain.augment=false",
    "stages.plain.select=loss", "stages.plain.epochs=1", "run.device=cpu",
]  # fmt: skip

if __name__ == "__main__":
    main()
