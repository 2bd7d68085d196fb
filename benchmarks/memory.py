"""Memory of the coordinator's own process at the size of a preset, for a few sites and for many.

python -m benchmarks.memory --preset paper --sites 3 10 30

Each number of sites is a process of its own. It runs the coordinator's real round loop (screening, sum, checkpoint)
over sites that send one stored update, read anew from a file for each: what a site's message takes here is as it is
over the real transport once Flower has put it together. What Flower, TLS and the seals take besides is not in it
(``python -m benchmarks.consortium memory`` measures whole processes).

Told is memory of the process's own (anonymous pages: what a machine cannot take back), above what it held when the
sites had been found, in MB of 10**6 bytes and in models (exchanged tensors and base), by what was going on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fed_diffmic.config.compose import compose
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.exchange.packing import Packing
from fed_diffmic.exchange.payload import Limits, Payload, decode, encode, request_name
from fed_diffmic.files import map_tensors, save_tensors
from fed_diffmic.training.stages import initial_state
from fed_diffmic.transport.identity import ensure_task_identity, set_message_id
from fed_diffmic.transport.messages import reply_message, wire_of
from server.bounds import Bounds
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from server.rounds import find_sites, run_stage
from server.run_state import RunState
from server.terms import RunTerms

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
IMAGES, SAMPLE_S = 70, 0.01
PLACE = ("run", "arm", "stage", "round", "site")


def spec_of(preset: str, strategy: str, rounds: int) -> RunSpec:
    """The preset's settings, without weights to be fetched."""
    chosen = ["dataset=ham10000", f"model={preset}", f"stages={preset}", "model.pretrained=false"]
    spec = make_spec(
        compose(None, [*chosen, f"strategy={strategy}"]),
        classes=CLASSES, task="multiclass", run_id="bench", arm="federated", device="cpu",
    )  # fmt: skip
    stages = {stage: replace(spec.stage(stage), rounds=rounds) for stage in ("guidance", "diffusion")}
    return replace(spec, stages=replace(spec.stages, **stages))


class Watch:
    """The most that this process held, by what was going on."""

    def __init__(self) -> None:
        self.doing = "start"
        self.peaks: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @staticmethod
    def now() -> float:
        """MB of anonymous memory."""
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e6

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.peaks[self.doing] = max(self.peaks.get(self.doing, 0.0), self.now())

    def end(self) -> None:
        """No more looks."""
        self._over.set()
        self._thread.join()


class Replay(Grid):
    """Sites that answer with what is stored; an answer is made when it is asked for."""

    def __init__(self, names: list[str], folder: Path, watch: Watch) -> None:
        ensure_task_identity()
        self.names, self.watch = names, watch
        self._stored = folder / "update.safetensors"
        self._update: Packing | None = None
        self._asked: dict[str, tuple[Message, str, dict[str, Any]]] = {}
        self._number = 0

    def set_run(self, run: Any) -> None:
        """There is one."""

    @property
    def run(self) -> Any:
        """None is known."""
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Nobody calls it."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Nobody calls it."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """All of them."""
        return range(1, len(self.names) + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep what must be said in the answer; the weights go on."""
        ids = []
        for message in messages:
            wire = wire_of(message.content)
            body = json.loads(wire.body)
            kind, header = body["kind"], body["header"]
            self.watch.doing = {"train": "sending", "evaluate": "judging"}.get(kind, "finding")
            if kind == "train" and not self._stored.exists():
                self.watch.doing = "storing"  # not the coordinator's doing
                self._store(decode(wire, Limits(1 << 34)).tensors)
                self.watch.doing = "sending"
            message.content.clear()
            self._number += 1
            set_message_id(message, str(self._number))
            self._asked[str(self._number)] = (message, kind, header)
            ids.append(str(self._number))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answer to the first."""
        for number in message_ids:
            message, kind, header = self._asked.pop(number)
            reply = self._answer(message, kind, header)
            self.watch.doing = {"train": "updates", "evaluate": "judging"}.get(kind, "finding")
            set_message_id(reply, f"reply-{number}")
            return [reply]
        return []

    def _answer(self, message: Message, kind: str, header: dict[str, Any]) -> Message:
        said = {"run": header["run"], "arm": header["arm"], "request": request_name(header)}
        if kind == "query":
            name = self.names[message.metadata.dst_node_id - 1]
            counts = [IMAGES // len(CLASSES)] * len(CLASSES)
            found = Payload("query.reply", {**said, "site": name, "images": [IMAGES, 10, 10], "class_counts": counts})
            return reply_message(found, message)
        said |= {field: header[field] for field in PLACE}
        if kind == "evaluate":
            metrics = {"num_examples": 10.0, "auroc_macro": 0.7, "balanced_accuracy": 0.5, "accuracy": 0.5, "loss": 1.0}
            return reply_message(Payload("evaluate.reply", said, metrics=metrics), message)
        said |= {"state": "", "ledger": "", "claim": "", "num_examples": IMAGES}
        metrics = {"loss": 1.0, "loss_images": 70.0, "steps": 1.0, "seconds": 1.0}
        self._update = self._update or Packing(map_tensors(self._stored))
        reply = reply_message(Payload("train.reply", said, metrics=metrics), message,
                              encode(Payload("train.reply", said, metrics=metrics), self._update))  # fmt: skip
        self._update.release()
        return reply

    def _store(self, sent: dict[str, np.ndarray]) -> None:
        """An update of the size of one."""
        rng, moved = np.random.default_rng(0), {}
        for name in [name for name in sent if not name.startswith("base/")]:
            value = sent.pop(name)
            if value.dtype.kind == "f":
                value += np.abs(np.float32(1e-3) * rng.standard_normal(value.shape, dtype=np.float32))
            moved[name] = value
        save_tensors(self._stored, moved)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One run of a stage in this process."""
    rounds, stage = given.rounds, given.stage
    spec, names = spec_of(given.preset, given.strategy, rounds), [f"site-{n:02d}" for n in range(given.sites[0])]
    with tempfile.TemporaryDirectory() as scratch:
        watch, store = Watch(), CheckpointStore(Path(scratch) / "run")
        grid = Replay(names, Path(scratch), watch)
        hooks = Hooks(bounds=Bounds(0.5, "clip") if given.bounded else Bounds())
        terms = RunTerms([stage], names, deadline_s=7200.0, poll_s=0.001)
        results = {} if stage == "guidance" else {"guidance": initial_state(spec, "guidance")}
        begun_state = RunState(settings={}, results=results)
        with store.locked():
            run = find_sites(grid, spec, store, _Quiet(watch), terms, begun_state, hooks, ())
            idle = watch.now()
            watch.doing = "opening"
            begun, spent = time.monotonic(), time.process_time()
            run_stage(run, stage)
            spent, wall = time.process_time() - spent, time.monotonic() - begun
        watch.end()
        result = run.run_state.results[stage]
    model = sum(value.nbytes for value in result.values()) / 1e6
    peaks = {
        doing: round(peak - idle) for doing, peak in watch.peaks.items() if doing not in ("start", "finding", "storing")
    }
    return {
        "sites": len(names),
        "model": model,
        "idle": idle,
        "peaks": peaks,
        "cpu": spent / rounds,
        "wall": wall / rounds,
    }


class _Quiet:
    """Events that say what goes on, and nothing else."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def emit(self, kind: str, **facts: Any) -> None:
        """Once all sites are done, the sum is made the next weights; once all have judged, the round is kept."""
        self._watch.doing = {"site_done": "updates", "round_done": "ended"}.get(kind, self._watch.doing)


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each number of sites."""
    steps = ("opening", "sending", "updates", "judging")
    head = ["sites", *(f"{step}, MB" for step in steps), "most, models", "CPU s a round"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        peaks = row["peaks"]
        most = max(value for step, value in peaks.items() if step != "opening")
        cells = [
            row["sites"],
            *(peaks.get(step, 0) for step in steps),
            f"{most / row['model']:.2f}",
            f"{row['cpu']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], preset: str, path: Path) -> None:
    """The most that was held against the number of sites, in models, with the line that is aimed at."""
    from matplotlib.figure import Figure

    from simulations.experiments.pictures import save_drawing

    sites = [row["sites"] for row in rows]
    most = [max(value for step, value in row["peaks"].items() if step != "opening") / row["model"] for row in rows]
    drawing = Figure(figsize=(5.0, 2.6), layout="constrained")
    ax = drawing.add_subplot()
    ax.plot(sites, most, "o-", color="#0072b2", label=f"measured, {preset}")
    ax.plot(
        sites, [3.0 + 0.1 * count for count in sites], ":", color="#999999", label="at most: 3 models and 0.1 a site"
    )
    ax.plot(sites, [3.0 + count for count in sites], "--", color="#d55e00", label="if every update were held")
    ax.set_ylim(0, 1.15 * max(3.0 + 0.1 * sites[-1], *most))
    ax.set_xlabel("sites")
    ax.set_ylabel("models above idle, at most")
    ax.legend(fontsize=8, loc="upper left")
    save_drawing(drawing, path)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "compact", "paper"), default="compact")
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--stage", choices=("guidance", "diffusion"), default="diffusion")
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bounded", action="store_true", help="with the bounds that a real coordinator has unless set")
    parser.add_argument("--here", action="store_true", help="in this process, one number of sites; JSON")
    parser.add_argument("--svg", type=Path, help="draw it into this file, too")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given)))
        return 0
    alike = ["--preset", given.preset, "--stage", given.stage, "--strategy", given.strategy]
    alike += ["--rounds", str(given.rounds), *(["--bounded"] if given.bounded else [])]
    rows = []
    for sites in given.sites:
        command = [sys.executable, "-m", "benchmarks.memory", "--here", "--sites", str(sites), *alike]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(" ".join(alike), f"a model is {rows[0]['model']:.0f} MB; idle {rows[0]['idle']:.0f} MB", sep="; ", end="\n\n")
    print(table(rows))
    if given.svg is not None:
        draw(rows, f"{given.preset}, {given.stage}", given.svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
