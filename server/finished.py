"""What the sites say of a stage that is finished: the task that asks them, and the cross-site matrix."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.matrix import cell_from
from fed_diffmic.training.pooled import with_points
from fed_diffmic.training.sureness import Sureness
from fed_diffmic.training.together import together
from server.broadcast import known_already
from server.exchange import AssessRequest, MetricsAnswer, StageTask
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


@dataclass(frozen=True)
class Assessed:
    """What sites let out of their test images.

    Attributes:
        matrix: model -> site -> cell.
        together: model -> figures over the test images of several sites together
            (:func:`fed_diffmic.training.together.together`), and ``sites``, whose they are; where sums are seen alone.
    """

    matrix: dict[str, dict[str, Any]] = field(default_factory=dict)
    together: dict[str, dict[str, Any]] = field(default_factory=dict)


def assess(run: Federation, fitted: Mapping[str, Calibration], sure: Mapping[str, Sureness]) -> Assessed:
    """The cross-site matrix from what the sites let out of their test images, or figures over all of them together.

    Test images are asked for once, when nothing is left to be chosen, and only where the run's terms say how long
    (``test_s``). A site that lets nothing out, or is not there, has a cell without metrics; no run fails by it. The
    last stage, which is the model, comes first; whoever said nothing of it in time is not waited for again. Where sums
    are seen alone it is the only one that is asked about.
    """
    spec, run_state, found = run.spec, run.run_state, Assessed()
    if run.terms.test_s <= 0:
        return found
    asked: set[str] | None = None
    for stage in reversed(run_state.results):
        task, weights, own = finished_task(spec, run_state, stage)
        deadline = time.monotonic() + run.terms.test_s
        parcel = known_already(weights)
        request = AssessRequest(task, weights, fitted[stage], deadline, own, asked, parcel, sure.get(stage))
        answer = run.exchange.assess(request)
        asked = set(answer.metrics)
        run_state.bytes_sent += answer.outcome.bytes_sent
        if answer.summed is not None:
            _together(run, stage, answer, found)
            break
        everyone = sorted(run.exchange.everyone())
        said = {site: answer.metrics.get(site, {}) for site in everyone}
        cells = {site: cell_from(metrics, spec.classes) for site, metrics in said.items()}
        found.matrix[stage] = {site: with_points(cell, said[site], spec.classes) for site, cell in cells.items()}
        missing = answer.outcome.missing
        run.events.emit("assessed", arm=spec.arm, stage=stage, sites=sorted(answer.metrics), missing=missing)
    return found


def _together(run: Federation, stage: str, answer: MetricsAnswer, found: Assessed) -> None:
    """Take what the sum says of a stage."""
    spec, place = run.spec, {"arm": run.spec.arm, "stage": stage}
    if answer.summed:
        try:
            said = together(answer.summed, spec.classes, spec.task)
        except ValueError as error:
            run.events.emit("figures_missing", **place, round=0, purpose="test", reason=str(error), todo="")
            return
        found.together[stage] = {"sites": list(answer.among), **said}
    run.events.emit("assessed", **place, sites=list(answer.among), missing=answer.outcome.missing)
