"""One site trains by itself, by the settings of a run: the baseline ``local`` at a hospital, by the same code.

In a simulation it is an arm (:mod:`simulations.arms`); given the same images, names, seeds and first weights both end
with the same weights, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from fed_diffmic.config.compose import to_json
from fed_diffmic.config.folders import has_final
from fed_diffmic.config.simulation import RunConfig, SimulateConfig
from fed_diffmic.config.spec import STAGES, RunSpec
from fed_diffmic.data.site import SiteData
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.reporting.events import EventLog
from fed_diffmic.reporting.progress import RichProgress, make_progress
from server.app import app as server_app
from server.app import shared_events
from server.study import first_digests
from simulations.arms import Arm, alone
from simulations.flower_app import VirtualClientApp
from simulations.grid import InProcessGrid
from simulations.why import reasons


def alone_spec(
    spec: RunSpec, site: str, device: str, weights: str | None = None, prior_weights: str | None = None
) -> RunSpec:
    """The settings of a run for one site by itself, which trains plainly (:func:`simulations.arms.alone`).

    Args:
        spec: of the run, as it came.
        weights, prior_weights: files that the encoders start from; the coordinator's do not travel.
    """
    model = replace(spec.model, weights=weights, prior_weights=prior_weights)
    return replace(spec, arm=f"local/{site}", strategy=alone(), model=model, device=device)


def starts_elsewhere(spec: RunSpec, stage: str, first: dict[str, str]) -> bool:
    """Whether training alone would start from other weights than the run did.

    Args:
        spec: from :func:`alone_spec`.
        stage: the first one.
        first: digests of the run's study (``initial``); empty: it says nothing.
    """
    return bool(first) and first_digests(spec, stage) != first


def train_alone(spec: RunSpec, data: SiteData, folder: Path, stages: Sequence[str]) -> FinalModel:
    """Train on one site's images; a run that an interruption left in the folder goes on.

    Args:
        spec: from :func:`alone_spec`.
        data: the site's; test images are not looked at.
        folder: to work in; other settings work in another folder below it.
        stages: in order.

    Raises:
        RoundError, ModelFileError, MachineError: see :func:`server.rounds.run_federation`.
    """
    work = folder / hashlib.sha256(spec.to_json().encode()).hexdigest()[:16]
    work.mkdir(exist_ok=True)
    config = SimulateConfig(
        seed=spec.seed,
        model=spec.model,
        stages=spec.stages,
        strategy=spec.strategy,
        run=RunConfig(dir=str(work), device=spec.device, threads_per_site=spec.threads),
    )
    arm = Arm(spec.arm, tuple(stage for stage in STAGES if stage in stages), (data.name,))
    run_config: dict[str, Any] = {
        "config-json": to_json(config),
        "spec-json": spec.to_json(),
        "stages": ",".join(arm.stages),
        "sites": data.name,
        "run-dir": str(work),
        "folder": str(work),
    }
    if not has_final(work):
        progress = make_progress()
        node = {"site": data.name, "partition-id": 0, "num-partitions": 1, "memory": True, "keep-updates": False}
        grid = InProcessGrid(VirtualClientApp(source=lambda *_: data), [node], run_config)
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
        try:
            with (
                EventLog(work / "events.jsonl", observers=[progress]) as events,
                shared_events(events),
                reasons(work),
            ):
                server_app(grid=grid, context=context)
        finally:
            if isinstance(progress, RichProgress):
                progress.close()
    return load_final(work)
