"""Prediction sets and the test of uncertainty of the final model, from what the sites count."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.sureness import IMAGES, SETS, SQUARES, UNSURE, Counts, Sureness, counts_from, fit
from server.finished import finished_task
from server.replies import Events, Site
from server.run_state import RunState
from server.sites import Sites

CONFORM = "evaluate.conform"
ARM = "federated"  # a baseline is compared, not used
LONGEST_S = 1800.0


def conform(
    members: Sites,
    spec: RunSpec,
    state: RunState,
    events: Events,
    fitted: Mapping[str, Calibration],
    deadline_s: float,
) -> dict[str, Sureness]:
    """How sure the run's model, its last stage, is: thresholds of prediction sets, and which measures tell errors.

    A site that tells nothing, or is not there within half an hour, is named as silent; no run fails by it.
    """
    if spec.arm != ARM or not state.results:
        return {}
    stage = list(state.results)[-1]
    task, weights, own = finished_task(spec, state, stage)
    deadline = time.monotonic() + min(deadline_s, LONGEST_S)

    def ranges(site: Site) -> dict[str, tuple[float, float]]:
        # A site that keeps back how many validation images it has: no more than it trains on.
        most = float(site.images[0] if site.images[1] is None else site.images[1])
        return {IMAGES: (0.0, most), SQUARES: (0.0, most * most), SETS: (0.0, most), UNSURE: (0.0, most)}

    figures, outcome = members.ask_finished(
        CONFORM,
        task,
        weights,
        deadline,
        kind="conform",
        header=lambda site: {
            "state": own.get(site, ""),
            "guidance": task.guidance.get(site, ""),
            "calibration": fitted[stage].to_json(),
        },
        metrics=ranges,
    )
    state.bytes_sent += outcome.bytes_sent
    counts: dict[str, Counts] = {}
    for name, said in figures.items():
        found = counts_from(said, spec.task, spec.num_classes)
        if found is None:
            members.refused(name, "metrics", stage)
        elif found.n:
            counts[name] = found
    everyone = members.everyone()
    guarded = members.hooks.bounds.guarded(len(everyone))
    sure = fit(counts, sorted(everyone - set(counts)), spec.task, spec.num_classes, guarded=guarded)
    events.emit(
        "conformed",
        arm=spec.arm,
        stage=stage,
        images=sure.n,
        sites=list(sure.sites),
        silent=list(sure.silent),
        offered=[measure.measure for measure in sure.offered],
        missing=outcome.missing,
    )
    return {stage: sure}
