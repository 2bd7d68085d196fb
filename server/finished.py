"""What the sites say of a stage that is finished: the task that asks them, and the cross-site matrix."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.matrix import cell_from
from fed_diffmic.training.pooled import with_points
from fed_diffmic.training.sureness import Sureness
from server.broadcast import known_already
from server.exchange import AssessRequest, StageTask
from server.federation import Federation
from server.run_state import RunState
from server.stage import exchanged_kinds
from server.strategy import server_algorithm


def finished_task(spec: RunSpec, run_state: RunState, stage: str) -> tuple[StageTask, Tensors, Mapping[str, str]]:
    """What asks for metrics of a finished stage: the task, its weights, and digests of the sites' own parts."""
    kinds = exchanged_kinds(spec, stage, server_algorithm(spec.strategy, spec.stage(stage)))
    result = run_state.results[stage]
    frozen = {name: value for name, value in result.items() if name not in kinds}
    task = StageTask.of(stage, frozen, run_state.personal)
    return task, {name: result[name] for name in kinds}, run_state.personal.get(stage, {})


def assess(
    run: Federation, fitted: Mapping[str, Calibration], sure: Mapping[str, Sureness]
) -> dict[str, dict[str, Any]]:
    """The cross-site matrix from what the sites let out of their test images: model -> site -> cell.

    Test images are asked for once, when nothing is left to be chosen, and only where the run's terms say how long
    (``test_s``). A site that lets nothing out, or is not there, has a cell without metrics; no run fails by it. The
    last stage, which is the model, comes first; whoever said nothing of it in time is not waited for again.
    """
    spec, run_state, matrix = run.spec, run.run_state, dict[str, dict[str, Any]]()
    if run.terms.test_s <= 0:
        return matrix
    asked: set[str] | None = None
    for stage in reversed(run_state.results):
        task, weights, own = finished_task(spec, run_state, stage)
        deadline = time.monotonic() + run.terms.test_s
        parcel = known_already(weights)
        request = AssessRequest(task, weights, fitted[stage], deadline, own, asked, parcel, sure.get(stage))
        answer = run.exchange.assess(request)
        asked = set(answer.metrics)
        run_state.bytes_sent += answer.outcome.bytes_sent
        everyone = sorted(run.exchange.everyone())
        said = {site: answer.metrics.get(site, {}) for site in everyone}
        cells = {site: cell_from(metrics, spec.classes) for site, metrics in said.items()}
        matrix[stage] = {site: with_points(cell, said[site], spec.classes) for site, cell in cells.items()}
        missing = answer.outcome.missing
        run.events.emit("assessed", arm=spec.arm, stage=stage, sites=sorted(answer.metrics), missing=missing)
    return matrix
