"""Prediction sets and the test of uncertainty of the final model, from what the sites count."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.sureness import Counts, Sureness, counts_from, fit, fit_sum
from server.broadcast import known_already
from server.exchange import AssessRequest, MetricsAnswer
from server.federation import Federation
from server.finished import finished_task
from server.judges import able

ARM = "federated"  # a baseline is compared, not used
LONGEST_S = 1800.0


def conform(run: Federation, fitted: Mapping[str, Calibration]) -> dict[str, Sureness]:
    """How sure the run's model, its last stage, is: thresholds of prediction sets, and which measures tell errors.

    A site that tells nothing, or is not there within half an hour, is named as silent; no run fails by it.
    """
    spec, run_state, exchange = run.spec, run.run_state, run.exchange
    if spec.arm != ARM or not run_state.results:
        return {}
    stage = list(run_state.results)[-1]
    task, weights, own = finished_task(spec, run_state, stage)
    deadline = time.monotonic() + min(run.terms.deadline_s, LONGEST_S)
    asked = able(run_state.claims, exchange.everyone())
    request = AssessRequest(task, weights, fitted[stage], deadline, own, asked, known_already(weights))
    answer = exchange.conform(request)
    run_state.bytes_sent += answer.outcome.bytes_sent
    sure = _by_site(run, stage, answer) if answer.summed is None else _of_sum(run, stage, answer)
    run.events.emit(
        "conformed",
        arm=spec.arm,
        stage=stage,
        images=sure.n,
        sites=list(sure.sites),
        silent=list(sure.silent),
        offered=[measure.measure for measure in sure.offered],
        missing=answer.outcome.missing,
    )
    return {stage: sure}


def _by_site(run: Federation, stage: str, answer: MetricsAnswer) -> Sureness:
    """From the counts of each site; what cannot be counts is refused."""
    spec, exchange = run.spec, run.exchange
    counts: dict[str, Counts] = {}
    for name, said in answer.metrics.items():
        found = counts_from(said, spec.task, spec.num_classes)
        if found is None:
            exchange.refused(name, "metrics", stage)
        elif found.n:
            counts[name] = found
    everyone = exchange.everyone()
    guarded = run.hooks.bounds.guarded(len(everyone))
    return fit(counts, sorted(everyone - set(counts)), spec.task, spec.num_classes, guarded=guarded)


def _of_sum(run: Federation, stage: str, answer: MetricsAnswer) -> Sureness:
    """From the sum over several sites, where nobody sees the counts of one; without a sum nothing is known."""
    spec, everyone = run.spec, run.exchange.everyone()
    if answer.summed:
        silent = sorted(everyone - set(answer.among))
        try:
            return fit_sum(answer.summed, answer.among, silent, spec.task, spec.num_classes)
        except ValueError as error:
            place = {"arm": spec.arm, "stage": stage, "round": 0}
            run.events.emit("figures_missing", **place, purpose="conform", reason=str(error), todo="")
    return Sureness(spec.task, spec.num_classes, silent=tuple(sorted(everyone)))
