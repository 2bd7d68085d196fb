"""Kills a small federation by SIGKILL at chosen moments of its durable writes, resumes it, compares.

Run as a program so that children can be forked from a process without threads:
``python tests/server/kill_driver.py FOLDER VARIANT STRIDE OFFSET`` prints one JSON object. Without arguments it
reads such lines (a JSON list each) from its input and answers each with a line: what it imports is imported once.

The moments of one run, in order: before a file's temporary is made, before its rename, after its
rename; before a log line, in the middle of it, after it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from fed_diffmic.config.compose import compose  # noqa: E402
from fed_diffmic.config.simulation import StrategyConfig  # noqa: E402
from fed_diffmic.config.spec import make_spec  # noqa: E402
from fed_diffmic.reporting.events import EventLog  # noqa: E402
from fed_diffmic.training import calibration, stages  # noqa: E402
from server.checkpoints import CheckpointStore  # noqa: E402
from tests import toy  # noqa: E402

ADAM = StrategyConfig(name="flower", class_path="flwr.serverapp.strategy.FedAdam", options={"eta": 0.01})
VARIANTS = {
    "plain": {"keep": False},
    "state": {"keep": True, "strategy": ADAM},
    "recompute": {"keep": True, "keep_updates": False},
    "scaffold": {"strategy": StrategyConfig(name="scaffold")},
    "fedbn": {"strategy": StrategyConfig(name="fedbn")},
    "ditto": {"strategy": StrategyConfig(name="ditto"), "keep": True},
    "int8": {"strategy": StrategyConfig(codec="int8")},
    "topk": {"strategy": StrategyConfig(codec="topk", topk_share=0.3), "ema": 0.0, "keep": True},
    "int4": {"strategy": StrategyConfig(name="scaffold", codec="int4"), "ema": 0.0, "keep_updates": False},
    "one message": {"one_exchange": True},
    "one message, coded": {"one_exchange": True, "keep": True, "strategy": StrategyConfig(codec="int8")},
    "diffmic": {},
}


def diffmic_federation(folder: Path) -> tuple[Any, Any, list[str]]:
    """The real network, ``tiny``, in both stages, with encoders of the prior frozen."""
    options = [
        "model=tiny",
        "model.image_side=32",
        "model.prior_init=own",
        "stages.diffusion.encoders=frozen",
        "strategy.keep_optimizer_state=true",
    ]
    for stage in ("guidance", "diffusion"):
        options += [
            f"stages.{stage}.rounds=2",
            f"stages.{stage}.epochs=1",
            f"stages.{stage}.batch_size=6",
            f"stages.{stage}.ema=0.5",
        ]
    config = compose(None, options)
    spec = make_spec(config, classes=toy.CLASSES, task="multiclass", run_id="real", arm="federated", device="cpu")
    source = toy.ToySource({name: toy.toy_site(name, seed, side=32) for seed, name in enumerate(("a", "b"), start=1)})
    return toy.toy_grid(folder, source=source)[0], spec, ["guidance", "diffusion"]


def toy_federation(folder: Path, variant: str) -> tuple[Any, Any, list[str]]:
    """Toy networks in two stages."""
    settings = dict(VARIANTS[variant])
    settings.pop("one_exchange", None)
    node = {"keep-updates": settings.pop("keep_updates", True)}
    toy.install_toy_networks()
    return toy.toy_grid(folder, **node)[0], toy.toy_spec(**settings), ["guidance", "plain"]


class Moments:
    """Counts the moments of a run and kills this process at the one chosen (from 1; 0: never)."""

    def __init__(self, fatal: int) -> None:
        self.count = 0
        self.fatal = fatal

    def reached(self) -> bool:
        self.count += 1
        return self.count == self.fatal

    def pass_(self) -> None:
        if self.reached():
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        make, replace, write = tempfile.mkstemp, os.replace, os.write

        def mkstemp(*args: Any, **kwargs: Any) -> Any:
            self.pass_()
            return make(*args, **kwargs)

        def replacing(*args: Any, **kwargs: Any) -> None:
            self.pass_()
            replace(*args, **kwargs)
            self.pass_()

        def writing(fd: int, data: bytes) -> int:
            self.pass_()
            if self.reached():
                write(fd, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            done = write(fd, data)
            self.pass_()
            return done

        tempfile.mkstemp, os.replace, os.write = mkstemp, replacing, writing  # type: ignore[assignment]
        os.fsync = lambda fd: None  # SIGKILL loses nothing that the kernel has


def train(folder: Path, variant: str, fatal: int | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    grid, spec, stages = diffmic_federation(folder) if variant == "diffmic" else toy_federation(folder, variant)
    moments = Moments(fatal or 0)
    if fatal is not None:
        moments.install()
    with EventLog(folder / "events.jsonl") as events:
        final = toy.federate(
            grid, spec, CheckpointStore(folder), events, stages=stages, sites=["a", "b"], poll_s=0.001,
            one_exchange=bool(VARIANTS[variant].get("one_exchange")),
        )  # fmt: skip
    return {"moments": moments.count, "digests": final.digests, **traces(folder)}


def traces(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on having been killed: the last round's checkpoint and the history."""
    model = json.loads((folder / "final" / "model.json").read_text())
    last = json.loads((folder / "checkpoints" / "previous.json").read_text())["progress"]
    for facts in model["history"]:
        facts.pop("seconds")
        facts.pop("bytes_sent")
        for site in facts["sites"].values():
            site.pop("seconds")
    states = {str(path.relative_to(folder)) for path in (folder / "sites").glob("*/states/*/*.safetensors")}
    return {
        "last_round": last,
        "history": model["history"],
        "calibration": model["calibration"],
        "states": sorted(states),
    }


def child(work: Callable[[], dict[str, Any]], report: Path) -> int:
    """Run ``work`` in a forked process; its result goes to ``report``; the wait status is returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            result = work()
            with open(report, "w") as stream:
                json.dump(result, stream)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def warm_up(folder: Path, variant: str) -> None:
    """What is imported on first use is imported once, before the forks: toys differ in little that is imported."""
    kind = "diffmic" if variant == "diffmic" else "toy"
    if kind not in _WARM:
        folder.mkdir()
        train(folder, variant, None)
        _WARM.add(kind)


_WARM: set[str] = set()


def main(root: Path, variant: str, stride: int, offset: int) -> dict[str, Any]:
    reference, report = root / "reference", root / "report.json"
    reference.mkdir(parents=True)
    warm_up(root / "warm", variant)
    if child(lambda: train(reference, variant, 0), report) != 0:
        raise SystemExit("the undisturbed run failed")
    wanted = json.loads(report.read_text())
    moments = wanted.pop("moments")
    tried, differing = [], []
    for fatal in range(1 + offset, moments + 1, stride):
        folder = root / f"killed-{fatal}"
        folder.mkdir()
        status = child(lambda folder=folder, fatal=fatal: train(folder, variant, fatal), report)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"moment {fatal} of {moments} was not reached")
        log = folder / "events.jsonl"
        before = log.read_bytes() if log.exists() else b""
        status = child(lambda folder=folder: train(folder, variant, 0), report)
        got = json.loads(report.read_text()) if status == 0 else {}
        got.pop("moments", None)
        after = log.read_bytes()
        if got != wanted or not after.startswith(before):
            differing.append({"moment": fatal, "keys": [k for k in wanted if got.get(k) != wanted[k]]})
        tried.append(fatal)
        shutil.rmtree(folder)
    return {"moments": moments, "tried": len(tried), "differing": differing}


def answer(folder: str, variant: str, stride: int, offset: int) -> str:
    """One line of JSON; the networks that a toy variant put in their place are there again afterwards."""
    kept = {name: getattr(stages, name) for name in ("build_guidance", "build_plain")}
    try:
        return json.dumps(main(Path(folder), variant, stride, offset))
    except SystemExit as error:
        return json.dumps({"error": str(error)})
    finally:
        for name, build in kept.items():
            setattr(stages, name, build)


if __name__ == "__main__":
    small = calibration.grid
    calibration.grid = lambda task, **_: calibration.Grid(small(task).scales[20:24], small(task).prior_weights[:2])
    if sys.argv[1:]:
        print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    for line in iter(sys.stdin.readline, "") if not sys.argv[1:] else ():
        print(answer(*json.loads(line)), flush=True)
