"""What asks the sites for figures of a stage that is finished."""

from __future__ import annotations

from collections.abc import Mapping

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.spec import RunSpec
from server.run_state import RunState
from server.sites import StageTask
from server.stage import exchanged_kinds
from server.strategy import server_algorithm


def finished_task(spec: RunSpec, state: RunState, stage: str) -> tuple[StageTask, Tensors, Mapping[str, str]]:
    """What asks for figures of a finished stage: the task, its weights, and digests of the sites' own parts."""
    kinds = exchanged_kinds(spec, stage, server_algorithm(spec.strategy, spec.stage(stage)))
    result = state.results[stage]
    frozen = {name: value for name, value in result.items() if name not in kinds}
    task = StageTask.of(stage, frozen, state.personal)
    return task, {name: result[name] for name in kinds}, state.personal.get(stage, {})
