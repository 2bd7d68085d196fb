"""The ServerApp: the same object in process, on Ray, under stock ``flwr run`` and ``flower-server``.

Flower's run configuration holds flat scalars only. These are read:

=============  ====================================================================================
config-json    resolved configuration (:func:`fed_diffmic.config.compose.to_json`), or ``overrides``
spec-json      what all sites have in common; without it, it is made from the configuration
stages         names separated by commas; without it, those of guidance and diffusion that have rounds, else plain
sites          names of the expected sites separated by ``|``; without it, whoever is there
run-dir        the run's folder
join-s         seconds to wait for sites to appear; without it, 300
test-s         seconds to wait for metrics on the sites' test images at the end; without it, nobody is asked
deliver-s      seconds to wait for sites that take the signed model; without it, nobody is sent it
folder         where this arm's checkpoints and final model lie; without it, ``run-dir``
=============  ====================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fed_diffmic.config.compose import config_from_run_config
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.release.final import FinalModel
from fed_diffmic.reporting.events import EventLog
from fed_diffmic.transport.folders import run_dir_of
from server.bounds import Bounds
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from server.labels import agreed_labels
from server.replies import Events
from server.rounds import run_federation
from server.terms import RunTerms

JOIN_S = 300.0

app = ServerApp()
_SHARED: list[tuple[Events, Hooks]] = []


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train what the run's configuration says; the final model lies in its folder."""
    run_dir = run_dir_of(context)
    run_dir.mkdir(parents=True, exist_ok=True)
    if _SHARED:
        events, hooks = _SHARED[-1]
        train(grid, context.run_config, run_dir, events, hooks)
        return
    with EventLog(run_dir / "events.jsonl") as own:
        train(grid, context.run_config, run_dir, own)


@contextmanager
def shared_events(events: Events, hooks: Hooks | None = None) -> Iterator[None]:
    """Let the ServerApp of this process write to an open log, with its observers, instead of its own.

    Args:
        events: the open log.
        hooks: what a real coordinator adds.
    """
    _SHARED.append((events, hooks or Hooks()))
    try:
        yield
    finally:
        _SHARED.pop()


def train(
    grid: Grid, run_config: Mapping[str, Any], run_dir: Path, events: Events, hooks: Hooks | None = None
) -> FinalModel:
    """Run the federation that a flat run configuration describes.

    Raises:
        ConfigError: the configuration is wrong.
        RoundError, ModelFileError, MachineError: see :func:`server.rounds.run_federation`.
    """
    config = config_from_run_config(run_config)
    named = str(run_config.get("sites") or "")
    sites = named.split("|") if named else None
    text = str(run_config.get("spec-json") or "")
    join_s = float(run_config.get("join-s") or JOIN_S)
    spec = RunSpec.from_json(text) if text else spec_of(config, grid, run_dir, events, sites, join_s, hooks)
    named_stages = str(run_config.get("stages") or "")
    return run_federation(
        grid,
        spec,
        CheckpointStore(str(run_config.get("folder") or run_dir)),
        events,
        RunTerms(
            stages=named_stages.split(",") if named_stages else trained_stages(config.stages),
            sites=sites,
            quorum=config.run.quorum,
            deadline_s=config.run.deadline_s,
            join_s=join_s,
            test_s=float(run_config.get("test-s") or 0.0),
            deliver_s=float(run_config.get("deliver-s") or 0.0),
            patience=config.run.patience,
            metrics_every=config.run.metrics_every,
            metrics_share=config.run.metrics_share,
            one_exchange=config.run.exchanges != "two",
        ),
        hooks=replace(hooks or Hooks(), bounds=Bounds.of(config.run)),
    )


def spec_of(
    config: SimulateConfig,
    grid: Grid,
    run_dir: Path,
    events: Events,
    sites: list[str] | None,
    join_s: float = JOIN_S,
    hooks: Hooks | None = None,
) -> RunSpec:
    """The spec of a run that was not given one; classes that the configuration does not name come from the sites."""
    classes, task = tuple(config.dataset.classes or ()), config.dataset.task
    if not classes or task is None:
        nodes = None if sites is None else len(sites)
        deadline = time.monotonic() + join_s
        said, said_task = agreed_labels(
            grid, events, run=run_dir.name, nodes=nodes, deadline=deadline, hooks=hooks, sites=sites
        )
        classes, task = classes or said, task or said_task
    device = "cpu" if config.run.device == "auto" else config.run.device
    return make_spec(config, classes=classes, task=task, run_id=run_dir.name, arm="federated", device=device)
