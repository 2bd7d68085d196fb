"""``fed-diffmic simulate``: the whole path on one machine, from published data to metrics.

Data -> virtual sites -> every arm (the federation, then the baselines) through the same ServerApp
and ClientApp that hospitals run -> metrics for the union and for each site -> summary and report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict

from fed_diffmic.config.compose import to_json, to_yaml
from fed_diffmic.config.folders import has_final, with_run_dir
from fed_diffmic.config.simulation import ModelConfig, SimulateConfig, StrategyConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.errors import ConfigError, FedDiffmicError
from fed_diffmic.files import atomic_write, write_json
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.release.personal import own_part
from fed_diffmic.reporting.curves import write_metrics_csv
from fed_diffmic.reporting.events import EventLog, earlier_seconds, read_events
from fed_diffmic.reporting.progress import RichProgress, make_progress
from fed_diffmic.reporting.table import print_summary
from fed_diffmic.reporting.tracking import make_trackers
from fed_diffmic.training.starting_weights import check_starting_weights
from server.app import app as server_app
from server.app import shared_events
from simulations.arms import Arm, TrainedArm, Trial, alone, arms_of, budget, trials_of
from simulations.flower_app import client_app
from simulations.folder import forget_rounds, forget_site_files, keep_trial, leave_nothing, prepare_run_dir
from simulations.grid import InProcessGrid
from simulations.metrics import Judge
from simulations.personal import keep_personal, personal_methods
from simulations.shared_noise import with_share
from simulations.sites import VirtualSites, check_named_sites, shared_sites
from simulations.summary import summarise
from simulations.why import reasons


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
    fresh = not Path(str(config.run.dir)).exists()
    run_dir = prepare_run_dir(config)
    config = replace(config, run=replace(config.run, dir=str(run_dir)))
    device = choose_device(config.run.device)
    try:  # before anything marks the folder as a run: what needs mending leaves it free to be used again
        if not resume:
            plain = ["plain"] if "plain" in config.baselines else []
            check_starting_weights(config, [*trained_stages(config.stages), *plain])
        sites = shared_sites(config, run_dir)
        check_named_sites(config, sites.sites)
    except FedDiffmicError:
        if fresh:
            leave_nothing(run_dir)
        raise
    atomic_write(run_dir / "config.yaml", to_yaml(config).encode())
    progress, trackers = make_progress(), make_trackers(config.run.tracking, run_dir)
    events = EventLog(run_dir / "events.jsonl", observers=[progress, *trackers], later=True)
    try:
        events.emit("resumed" if resume else "run_started", run=run_dir.name, seed=config.seed)
        for note in [*sites.notes, *model_notes(config.model)]:
            events.emit("warning", code="note", message=note)
        arms = arms_of(config.baselines, list(sites.sites), config.stages)
        trained = {arm.name: train_arm(config, arm, sites, run_dir, events, device) for arm in arms}
        methods: dict[str, Mapping[str, Judge]] = dict(method_models(arms, trained, sites, device))
        kinds = config.strategy.personal
        told = partial(events.emit, "personal_made")
        personal, facts = personal_methods(kinds, sites.sites, trained["federated"], methods, device, told)
        summary = summarise(config, sites, arms, trained, {**methods, **personal}, device)
        summary["personal"] = facts
        before = earlier_seconds(read_events(run_dir / "events.jsonl"))
        summary["seconds"] = round(before + time.monotonic() - started, 1)
        write_json(run_dir / "summary.json", summary)
        forget_site_files(run_dir)
        events.emit("run_done", seconds=summary["seconds"], bytes_sent=summary["bytes_sent"])
    finally:
        events.close()
        for tracker in trackers:
            tracker.close()
        if isinstance(progress, RichProgress):
            progress.close()
    from fed_diffmic.reporting.report import write_report  # matplotlib: not before there is something to draw

    log = read_events(run_dir / "events.jsonl")
    write_metrics_csv(run_dir / "metrics.csv", log)
    report = write_report(run_dir, summary, events=log, config_yaml=to_yaml(config))
    print_summary(summary, report)
    return summary


def model_notes(model: ModelConfig) -> list[str]:
    """What a user should know of a model that can be built but will hardly learn."""
    starts_random = not model.pretrained and model.weights is None
    if starts_random and (model.frozen_blocks or model.encoder_norm == "frozen"):
        return [
            "[frozen-random] the encoders start from random weights, and model.frozen_blocks or "
            "model.encoder_norm=frozen keep part of them so: give model.weights=FILE (or model.pretrained=true)"
        ]
    return []


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
) -> TrainedArm:
    """Train one arm in each way of the grid; the best on its own validation images stays.

    What was finished before (a resumed run) is loaded, not trained again.
    """
    events.emit("arm_started", arm=arm.name, stages=list(arm.stages), sites=list(arm.sites))
    folder = arm.folder(run_dir)
    candidates: list[tuple[Trial, FinalModel, Path]] = []
    trials = trials_of(arm, config.run)
    for trial in trials:
        place = folder if len(trials) == 1 else folder / trial.name
        place.mkdir(parents=True, exist_ok=True)
        spec = make_spec(
            replace(
                config,
                stages=trial.stages(budget(arm, config.stages, len(sites.sites))),
                strategy=with_share(config, strategy_of(config.strategy, arm), arm),
            ),
            classes=sites.classes,
            task=sites.task,
            run_id=run_dir.name,
            arm=arm.name,
            device=device,
        )
        events.emit("trial_started", arm=arm.name, lr_scale=trial.lr_scale, optimizer=trial.optimizer)
        candidates.append((trial, run_arm(config, spec, arm, place, run_dir, events), place))
        if place != run_dir:  # the run's own stay, as `checkpoints/` is documented
            forget_rounds(place)
    trial, best, chosen = max(candidates, key=lambda found: validation_score(found[1], arm.stages[-1]))
    if chosen != folder:
        keep_trial(chosen, folder)
    took = {"lr_scale": trial.lr_scale, "optimizer": trial.optimizer}
    events.emit("arm_done", arm=arm.name, **took, bytes_sent=best.bytes_sent)
    return TrainedArm(best, chosen, trial.lr_scale, trial.optimizer)


def strategy_of(strategy: StrategyConfig, arm: Arm) -> StrategyConfig:
    """The strategy of an arm: one site has nobody to be hidden from; personal models are made after it."""
    if arm.alone:
        return alone()
    strategy = replace(strategy, personal=[])
    return replace(strategy, client_noise_multiplier=0.0) if len(arm.sites) == 1 else strategy


def run_arm(
    config: SimulateConfig, spec: RunSpec, arm: Arm, folder: Path, run_dir: Path, events: EventLog
) -> FinalModel:
    """Run the coordinator's ServerApp over the arm's virtual sites; finished arms are only loaded."""
    if not has_final(folder):
        run_config: dict[str, Any] = {
            # Whoever is alone masks nothing either, which the virtual sites read here.
            "config-json": to_json(replace(config, strategy=alone()) if arm.alone else config),
            "spec-json": spec.to_json(),
            "stages": ",".join(arm.stages),
            "sites": "|".join(arm.sites),
            "run-dir": str(run_dir),
            "folder": str(folder),
        }
        nodes: list[dict[str, Any]] = [
            {"site": site, "partition-id": number, "num-partitions": len(arm.sites)}
            for number, site in enumerate(arm.sites)
        ]
        with shared_events(events), reasons(run_dir):
            if config.run.backend == "ray":
                from simulations.ray_backend import run_on_ray

                share = 1.0 / len(arm.sites) if spec.device.startswith("cuda") else 0.0
                run_on_ray(server_app, nodes, run_config, cpus_per_site=spec.threads, gpus_per_site=share)
            else:
                # An update that is not kept is computed again, to the same bits; where it has noise, spent again.
                here = {"memory": True, "keep-updates": config.privacy.name != "none"}
                grid = InProcessGrid(client_app, [{**node, **here} for node in nodes], run_config)
                context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
                server_app(grid=grid, context=context)
    final = load_final(folder)
    keep_personal(final, folder, run_dir)
    return final


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


def method_models(
    arms: list[Arm], trained: dict[str, TrainedArm], sites: VirtualSites, device: str
) -> list[tuple[str, dict[str, Predictor]]]:
    """For each method, the model that each site would use.

    ``guidance/...`` is an arm's guidance network alone: what its diffusion stage must not fall behind.
    """
    methods: dict[str, dict[str, Predictor]] = {}
    for arm in arms:
        final, folder = trained[arm.name].final, trained[arm.name].folder
        method, _, site = arm.name.partition("local/")
        method = f"{method}local" if site else arm.name
        places = [site] if site else list(sites.sites)
        stages = {method: arm.stages[-1]}
        if arm.stages == ("guidance", "diffusion"):
            stages[f"guidance/{method}"] = "guidance"
        for name, stage in stages.items():
            state, fitted = final.states[stage], final.calibration[stage]
            models: dict[str, Predictor] = {}
            for place in places:
                own = own_part(folder, final, stage, place)
                key = place if own else ""
                if key not in models:
                    models[key] = Predictor(final.spec, stage, state, fitted, device, own, final.sureness.get(stage))
                methods.setdefault(name, {})[place] = models[key]
    return list(methods.items())
