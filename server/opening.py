"""How a run and a stage begin, or go on from what is kept of them; another run than the kept one is refused."""

from __future__ import annotations

import json
from typing import Any

from fed_diffmic.config.fields import as_written
from fed_diffmic.config.folders import renamed
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.config.text import flattened
from fed_diffmic.errors import ModelFileError
from server.checkpoints import CheckpointStore
from server.exchange import StageTask
from server.federation import Federation
from server.hooks import Hooks
from server.replies import Events
from server.run_state import RunState
from server.stage import StageWork, begin_stage, exchanged_kinds
from server.strategy import server_algorithm
from server.terms import RunTerms
from server.trail import log_begun, log_resumed


def open_run(spec: RunSpec, store: CheckpointStore, events: Events, terms: RunTerms, hooks: Hooks) -> RunState:
    """What the run goes on from: the last checkpoint, or nothing yet.

    Raises:
        ModelFileError: the checkpoint is of a run with other settings, or torn.
    """
    settings = run_settings(spec, terms)
    run_state = store.load()
    if run_state is None:
        events.emit("federation_started", run=spec.run_id, arm=spec.arm, stages=list(terms.stages))
        return RunState(settings=settings)
    check_same_settings({k: v for k, v in run_state.settings.items() if k != "study"}, settings)
    progress = run_state.progress
    log_resumed(hooks, spec, progress)
    place = {"stage": progress.name if progress else "", "round": progress.round if progress else 0}
    events.emit("federation_resumed", arm=spec.arm, **place)
    return run_state


def open_stage(run: Federation, stage: str) -> StageWork:
    """The stage before its next round: begun and kept, or as the checkpoint holds it."""
    spec, run_state = run.spec, run.run_state
    config, everyone, bounds = spec.stage(stage), len(run.exchange.everyone()), run.hooks.bounds
    share = bounds.share(everyone)
    algorithm = server_algorithm(spec.strategy, config, share)
    kinds = exchanged_kinds(spec, stage, algorithm)
    progress = run_state.progress
    if progress is None or progress.name != stage:
        progress = begin_stage(spec, stage, kinds, run_state.results.get("guidance"))
        progress.algorithm = algorithm.initial_state(progress.current, kinds)
        run_state.progress = progress
        run.store.save(run_state)
    task = StageTask.of(stage, progress.frozen, run_state.personal)
    if progress.round == 0:  # before the first request: a site's own line of it must find the one that it comes of
        log_begun(run.hooks, spec, progress, task.digest, algorithm)
    return StageWork(config, task, algorithm, kinds, progress, share, bounds.guarded(everyone))


def run_settings(spec: RunSpec, terms: RunTerms) -> dict[str, Any]:
    """What must be the same for a run to be the same, as JSON holds it; what a run does not use is left out."""
    settings: dict[str, Any] = {
        "spec": as_written(spec),
        "stages": list(terms.stages),
        "sites": None if terms.sites is None else sorted(terms.sites),
    }
    if terms.patience:
        settings["patience"] = terms.patience
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def check_same_settings(stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse to continue a run under another configuration.

    Raises:
        ModelFileError: names the keys that differ.
    """
    then, now = flattened(stored), flattened(given)
    name = then.get("spec.run_id")
    if name != now.get("spec.run_id") and {**then, "spec.run_id": ""} == {**now, "spec.run_id": ""}:
        raise ModelFileError(
            *renamed(str(name), str(now.get("spec.run_id"))),
        )
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        raise ModelFileError(
            f"this run was started with other settings; they differ in {', '.join(changed[:8])}",
            "Resume with the run's own config.yaml, or start a new run in another run.dir.",
        )


def check_same_study(settings: dict[str, Any], digest: str) -> None:
    """Hold the run to the study that its first checkpoint names; one that names none takes this one.

    Raises:
        ModelFileError: it is another, as where the study's file is lost and the program another meanwhile.
    """
    if settings.setdefault("study", digest) != digest:
        raise ModelFileError(
            f"this run was started with the study {settings['study']}, and this is {digest}",
            "Restore study.json in the run's folder from the backup, or start a new run in another run.dir.",
        )
