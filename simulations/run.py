"""``fed-diffmic simulate``: the whole path on one machine, from published data to figures.

Data -> virtual sites -> every arm (the federation, then the baselines) through the same ServerApp
and ClientApp that hospitals run -> figures for the union and for each site -> summary and report.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fed_diffmic.compose import to_yaml
from fed_diffmic.config import SimulateConfig
from fed_diffmic.config_checks import with_run_dir
from fed_diffmic.errors import ConfigError, MachineError, ModelFileError
from fed_diffmic.files import atomic_write, read_json, write_json
from fed_diffmic.reporting.events import EventLog, read_events, write_metrics_csv
from fed_diffmic.reporting.progress import ProgressObserver
from fed_diffmic.reporting.report import write_report
from fed_diffmic.reporting.table import print_summary
from fed_diffmic.spec import RunSpec, make_spec
from server.checkpoints import FinalModel, has_final, load_final
from simulations.arms import Arm, arms_of, scaled
from simulations.figures import Predictor, method_figures
from simulations.grid import run_in_process
from simulations.sites import VirtualSites, shared_sites

PACKAGES = ("fed-diffmic", "flwr", "torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn")


def simulate(config: SimulateConfig, *, resume: bool = False) -> dict[str, Any]:
    """Run (or continue) a simulation and return its summary, which is also written to the run's folder.

    Args:
        config: checked configuration with ``run.dir`` set.
        resume: continue the run in ``run.dir``.

    Raises:
        DataError, PartitionError, ConfigError, RoundError, ModelFileError, MachineError: see
            :mod:`fed_diffmic.errors`.
    """
    started = time.monotonic()
    config = with_run_dir(config)
    run_dir = prepare_run_dir(config)
    config = replace(config, run=replace(config.run, dir=str(run_dir)))
    atomic_write(run_dir / "config.yaml", to_yaml(config).encode())
    device = choose_device(config.run.device)
    events = EventLog(run_dir / "events.jsonl", observers=observers(config, run_dir))
    try:
        events.emit("resumed" if resume else "run_started", run=run_dir.name, seed=config.seed)
        sites = shared_sites(config, run_dir)
        for note in sites.notes:
            events.emit("warning", text=note)
        arms = arms_of(config.baselines, list(sites.sites), config.stages)
        finals = {arm.name: train_arm(config, arm, sites, run_dir, events, device) for arm in arms}
        summary = summarise(config, sites, arms, finals, device)
        summary["seconds"] = round(time.monotonic() - started, 1)
        write_json(run_dir / "summary.json", summary)
        events.emit("run_done", seconds=summary["seconds"], bytes_sent=summary["bytes_sent"])
    finally:
        events.close()
    log = read_events(run_dir / "events.jsonl")
    write_metrics_csv(log, run_dir / "metrics.csv")
    report = write_report(run_dir, summary, events=log, config_yaml=to_yaml(config))
    print_summary(summary, report)
    return summary


def prepare_run_dir(config: SimulateConfig) -> Path:
    """The run's folder, made if needed.

    Raises:
        MachineError: it cannot be made or written.
    """
    run_dir = Path(str(config.run.dir)).resolve()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"run.dir cannot be made: {error.strerror}", "Choose a folder you may write to.") from error
    if not os.access(run_dir, os.W_OK):
        raise MachineError("run.dir cannot be written", "Choose a folder you may write to.")
    return run_dir


def choose_device(name: str) -> str:
    """A torch device's name; ``auto`` takes CUDA, then MPS, then the processor.

    Raises:
        ConfigError: not a device, or not on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("run.device", name, "auto, cpu, or a device of this machine (cuda, cuda:N, mps)") from error
    return name


def train_arm(
    config: SimulateConfig,
    arm: Arm,
    sites: VirtualSites,
    run_dir: Path,
    events: EventLog,
    device: str,
) -> FinalModel:
    """Train one arm with each learning rate of the grid; the best on its own validation images stays.

    What was finished before (a resumed run) is loaded, not trained again.
    """
    events.emit("arm_started", arm=arm.name, stages=list(arm.stages), sites=list(arm.sites))
    folder = arm.folder(run_dir)
    candidates: list[tuple[float, FinalModel]] = []
    for factor in config.run.lr_scales:
        trial = folder if len(config.run.lr_scales) == 1 else folder / f"lr-{factor:g}"
        trial.mkdir(parents=True, exist_ok=True)
        spec = make_spec(
            replace(config, stages=scaled(config.stages, factor)),
            classes=sites.classes,
            task=sites.task,
            run_id=run_dir.name,
            arm=arm.name,
            device=device,
        )
        candidates.append((factor, run_arm(config, spec, arm, trial, run_dir, events)))
    factor, best = max(candidates, key=lambda pair: validation_score(pair[1], arm.stages[-1]))
    events.emit("arm_done", arm=arm.name, lr_scale=factor, bytes_sent=best.bytes_sent)
    return best


def validation_score(final: FinalModel, stage: str) -> tuple[float, float]:
    """What the best learning rate has most of: the stage's chosen figure, else minus the loss."""
    select = final.spec.stage(stage).select
    scores = []
    for row in final.history:
        if row["stage"] == stage:
            figure, loss = row["mean"].get(select), row["mean"].get("loss")
            if select != "loss" and figure is not None:
                scores.append((1.0, float(figure)))
            elif loss is not None:
                scores.append((0.0, -float(loss)))
    return max(scores, default=(-1.0, 0.0))


def summarise(
    config: SimulateConfig, sites: VirtualSites, arms: list[Arm], finals: dict[str, FinalModel], device: str
) -> dict[str, Any]:
    """Every figure of the run; the only place where test images are read."""
    draws = config.run.bootstrap
    main = finals["federated"]
    last = arms[0].stages[-1]
    methods = {
        name: method_figures(models, sites.sites, draws) for name, models in method_models(arms, finals, sites, device)
    }
    own = methods.pop("federated")
    return {
        "status": "done",
        "run": Path(str(config.run.dir)).name,
        "seed": config.seed,
        "dataset": config.dataset.name,
        "task": sites.task,
        "classes": list(sites.classes),
        "stages": {stage: stage_facts(main, stage) for stage in arms[0].stages},
        "final_stage": last,
        "global": own["global"],
        "mean": own["mean"],
        "sites": {
            name: {
                "n_train": len(data.train),
                "n_val": len(data.val),
                "n_test": len(data.test),
                "class_counts": dict(zip(sites.classes, sites.class_counts[name], strict=True)),
                **own["sites"][name],
            }
            for name, data in sites.sites.items()
        },
        "baselines": nested(methods),
        "calibration": main.calibration[last].to_json(),
        "bytes_sent": main.bytes_sent,
        "notes": list(sites.notes),
        "versions": {**{name: version(name) for name in PACKAGES}, "python": platform.python_version()},
        "device": device,
        "digests": main.digests,
    }


def method_models(
    arms: list[Arm], finals: dict[str, FinalModel], sites: VirtualSites, device: str
) -> list[tuple[str, dict[str, Predictor]]]:
    """For each method, the model that each site would use.

    ``guidance`` is the federation's guidance network alone: what the diffusion stage must beat.
    """
    names = list(sites.sites)

    def predictor(arm: str, stage: str) -> Predictor:
        final = finals[arm]
        return Predictor(final.spec, stage, final.states[stage], final.calibration[stage], device)

    methods: list[tuple[str, dict[str, Predictor]]] = []
    for arm in arms:
        if arm.name.startswith(("local/", "plain/local/")):
            continue
        shared = predictor(arm.name, arm.stages[-1])
        methods.append((arm.name, dict.fromkeys(names, shared)))
        if arm.name == "federated" and arm.stages[-1] == "diffusion" and "guidance" in arm.stages:
            methods.append(("guidance", dict.fromkeys(names, predictor(arm.name, "guidance"))))
    for prefix in ("local/", "plain/local/"):
        chosen = {
            arm.name.removeprefix(prefix): predictor(arm.name, arm.stages[-1])
            for arm in arms
            if arm.name.startswith(prefix)
        }
        if chosen:
            methods.append((prefix.rstrip("/"), chosen))
    return methods


def nested(methods: dict[str, Any]) -> dict[str, Any]:
    """``plain/pooled`` becomes ``["plain"]["pooled"]``."""
    result: dict[str, Any] = {}
    for name, value in methods.items():
        *outer, last = name.split("/")
        place = result
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def stage_facts(final: FinalModel, stage: str) -> dict[str, Any]:
    """Rounds, the round chosen, seconds, bytes and the history of a stage."""
    history = [row for row in final.history if row["stage"] == stage]
    return {
        "rounds": len(history),
        "best_round": history[-1]["best_round"] if history else 0,
        "select": final.spec.stage(stage).select,
        "seconds": round(sum(row["seconds"] for row in history), 2),
        "bytes_sent": sum(row["bytes_sent"] for row in history),
        "history": history,
    }
