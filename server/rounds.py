"""The federation, read top to bottom: stages, rounds, the best round, the calibration.

Every round ends with a checkpoint; a run that was killed at any moment continues from the last one
and ends with the same weights, bit for bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Tensors
from fed_diffmic.config.folders import renamed
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.config.text import flattened
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.claims import parse_claim
from fed_diffmic.release.final import FinalModel, has_final, load_final
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.matrix import cell_from
from fed_diffmic.training.sureness import Sureness
from server.bounds import Bounds
from server.checkpoints import CheckpointStore
from server.client_level import ClientLevel
from server.culprit import aggregated
from server.finished import finished_task
from server.fitting import calibrate
from server.hooks import Hooks
from server.leaving import leave_out, tell_clipped
from server.outliers import plausible
from server.prior import consortium_prior
from server.replies import Events, Outcome
from server.run_state import RunState, StageProgress
from server.selection import NOBODY_SAYS, is_better, selection_score, weighted_mean
from server.sites import Sites, StageTask
from server.stage import (
    check_aggregate,
    exchanged_kinds,
    moving_average,
    start_state,
)
from server.strategy import server_algorithm
from server.study import study_of_run
from server.sureness import conform
from server.trail import log_aggregate, log_begun, log_chosen, log_resumed, round_facts, sent_in_next

FIGURES = ("loss", "auroc_macro", "balanced_accuracy", "accuracy")


def run_federation(
    grid: Grid,
    spec: RunSpec,
    store: CheckpointStore,
    events: Events,
    *,
    stages: Sequence[str],
    quorum: float = 1.0,
    deadline_s: float = 86400.0,
    sites: Sequence[str] | None = None,
    join_s: float = 300.0,
    poll_s: float = 0.1,
    test_s: float = 0.0,
    hooks: Hooks | None = None,
) -> FinalModel:
    """Train ``stages`` over the sites behind ``grid``, continuing what ``store`` holds.

    Args:
        grid: Flower's, in process or real.
        spec: what all sites have in common.
        store: checkpoints and the final model; held locked meanwhile.
        events: where facts go.
        stages: in order.
        quorum: share of the sites whose good replies a round needs.
        deadline_s: seconds that a round may take, its evaluation included.
        sites: names of the sites expected; none: whoever is there.
        join_s: the longest wait for sites to appear at the start.
        poll_s: pause between looking for replies.
        test_s: the longest wait for the figures that sites let out of their test images at the end; 0: nobody is asked
            (a simulation reads test images itself).
        hooks: what a real coordinator adds.

    Raises:
        RoundError: a quorum was missed; names the missing sites and why.
        ModelFileError: weights or checkpoints that do not fit or are torn.
        MachineError: another process works on this run, or the disk is full.
    """
    with store.locked():
        settings = {"spec": asdict(spec), "stages": list(stages), "sites": None if sites is None else sorted(sites)}
        state = store.load()
        if state is None:
            state = RunState(settings=_json(settings))
            events.emit("federation_started", run=spec.run_id, arm=spec.arm, stages=list(stages))
        else:
            check_same_settings({k: v for k, v in state.settings.items() if k != "study"}, _json(settings))
            progress = state.progress
            log_resumed(hooks or Hooks(), spec, progress)
            events.emit(
                "federation_resumed",
                arm=spec.arm,
                stage=progress.name if progress else "",
                round=progress.round if progress else 0,
            )
        if has_final(store.folder):
            return load_final(store.folder)
        signer = None if hooks is None else hooks.signer
        study = study_of_run(store.folder, spec, stages=stages, sites=sites, test=test_s > 0, signer=signer)
        check_same_study(state.settings, study.digest)
        members = Sites(
            grid,
            spec,
            events,
            names=sites,
            quorum=quorum,
            join_s=join_s,
            poll_s=poll_s,
            hooks=hooks,
            claims=state.claims,
            study=study,
        )
        members.find(time.monotonic() + deadline_s)
        if not state.counts:
            state.counts = {
                n: {"train": s.images[0], "classes": list(s.class_counts)} for n, s in members.members.items()
            }
        prior = consortium_prior(state.counts, spec.task, members.hooks.bounds.share(len(state.counts)))
        for stage in stages:
            if stage not in state.results:
                run_stage(members, spec, state, store, events, stage, prior, deadline_s)
        fitted = {stage: calibrate(members, spec, state, events, stage, prior, deadline_s) for stage in state.results}
        sure = conform(members, spec, state, events, fitted, deadline_s)
        matrix = assess(members, spec, state, events, fitted, test_s, sure) if test_s > 0 else {}
        final = store.finish(state, spec, fitted, hooks, matrix, members.heads, sure)
        events.emit("federation_done", arm=spec.arm, bytes_sent=final.bytes_sent, digests=final.digests)
        return final


def run_stage(
    members: Sites,
    spec: RunSpec,
    state: RunState,
    store: CheckpointStore,
    events: Events,
    stage: str,
    prior: np.ndarray,
    deadline_s: float,
) -> None:
    """All rounds of one stage; its best round becomes the stage's result."""
    cfg = spec.stage(stage)
    rounds = cfg.rounds or 0
    bounds, everyone = members.hooks.bounds, len(members.everyone())
    share, guarded = bounds.share(everyone), bounds.guarded(everyone)
    algorithm = server_algorithm(spec.strategy, cfg, share)
    kinds = exchanged_kinds(spec, stage, algorithm)
    progress = state.progress
    if progress is None or progress.name != stage:
        progress = begin_stage(spec, stage, kinds, state.results.get("guidance"))
        progress.algorithm = algorithm.initial_state(progress.current, kinds)
        state.progress = progress
        store.save(state)
    task = StageTask.of(stage, progress.frozen, state.personal)
    if progress.round == 0:
        log_begun(members.hooks, spec, progress, task.digest, algorithm)
    events.emit("stage_started", arm=spec.arm, stage=stage, round=progress.round, rounds=rounds, base=task.digest)
    while progress.round < rounds:
        started, index = time.monotonic(), progress.round + 1
        events.emit(
            "round_started", arm=spec.arm, stage=stage, round=index, rounds=rounds, sites=sorted(members.members)
        )
        noise = ClientLevel(spec.strategy, store.folder)
        updates, asked = train_round(
            members, task, progress, state.ledgers, algorithm, kinds, started + deadline_s, noise, len(state.history)
        )
        progress.average = moving_average(progress.average, progress.current, cfg.ema)
        candidate = progress.average or progress.current
        made = log_aggregate(members.hooks, spec, progress, asked, candidate, algorithm)
        own = progress.site_states if algorithm.personal else {}
        figures, evaluated = members.evaluate(task, candidate, own, prior.tolist(), index, started + deadline_s)
        score = selection_score(figures, cfg.select, share, guarded=guarded)
        before = figures_of_round(state, stage, progress.best_round)
        if is_better(score, progress.best_score, figures, before, cfg.select, guarded):
            progress.best, progress.best_round, progress.best_score = candidate, index, score
            progress.best_states = dict(own)
        state.ledgers |= ledger_heads(asked)
        progress.round = index
        state.bytes_sent += asked.bytes_sent + evaluated.bytes_sent
        trained = {u.site: {**asked.replies[u.site].metrics, "num_examples": u.num_examples} for u in updates}
        means = {name: weighted_mean(figures, name, share) for name in FIGURES}
        facts = {
            "stage": stage,
            "round": index,
            "loss": weighted_mean(trained, "loss", share),
            "mean": {name: value for name, value in means.items() if value is not None},
            "sites": trained,
            "val": figures,
            "missing": {**asked.missing, **evaluated.missing},
            "best_round": progress.best_round,
            "bytes_sent": asked.bytes_sent + evaluated.bytes_sent,
            "seconds": time.monotonic() - started,
        }
        claims = privacy_claims(asked)
        if claims:
            facts["privacy"] = claims
        if noise.on:
            facts["client_level"] = noise.facts()
        facts |= made | round_facts(members.hooks, {"train": asked, "evaluate": evaluated})
        state.history.append(facts)
        store.save(state)
        members.hooks.log("checkpoint", run=spec.run_id, arm=spec.arm, stage=stage, round=index)
        events.emit("round_done", arm=spec.arm, rounds=rounds, figures=facts["mean"], **facts)
    log_chosen(members.hooks, spec, progress, task.digest)
    state.results[stage] = {**progress.frozen, **(progress.best or progress.current)}
    if progress.best_states:
        state.personal[stage] = dict(progress.best_states)
    state.progress = None
    store.save(state)
    chosen = progress.best_score != NOBODY_SAYS
    events.emit("stage_done", arm=spec.arm, stage=stage, best_round=progress.best_round, chosen=chosen)


def train_round(
    members: Sites,
    task: StageTask,
    progress: StageProgress,
    ledgers: Mapping[str, str],
    algorithm: Algorithm,
    kinds: Mapping[str, str],
    deadline: float,
    noise: ClientLevel,
    before: int,
) -> tuple[list[SiteUpdate], Outcome]:
    """One local update at the sites that take part, and what the algorithm makes of them, written into ``progress``.

    Args:
        noise: what the algorithm sees of the updates, where the run has client-level privacy.
        before: rounds of the run that ended before.

    Returns:
        the updates that are in the aggregate, and the exchange.
    """
    index, sent = progress.round + 1, algorithm.broadcast(progress.current, progress.algorithm)
    where = f"stage {task.stage}, round {index}"
    updates, states, asked = members.train(
        task,
        sent_in_next(progress, algorithm),
        progress.site_states,
        progress.best_states,
        ledgers,
        algorithm,
        index,
        deadline,
    )
    # Under client-level privacy every update is clipped by itself: a bound made of the others' would leak them.
    bounds = Bounds() if noise.on else members.hooks.bounds
    judged = plausible(progress.current, sent, kinds, updates, bounds)
    tell_clipped(members, judged.clipped, task.stage, index)
    seen = noise.protect(progress.current, kinds, judged.updates, stage=task.stage, round_index=index, before=before)

    def step(some: Sequence[SiteUpdate]) -> tuple[Tensors, Tensors]:
        everyone = len(members.everyone())
        new, after = algorithm.aggregate(progress.current, kinds, some, progress.algorithm, index, everyone)
        return check_aggregate(progress.current, new, where), after

    new, state, culprit = aggregated(step, seen, progress.current, where)
    left_out = dict.fromkeys(judged.refused, "outlier") | ({culprit: "breaks"} if culprit else {})
    leave_out(members, left_out, asked, task.stage, index)
    progress.current, progress.algorithm = new, state
    progress.site_states |= {name: digest for name, digest in states.items() if digest and name not in left_out}
    return [update for update in judged.updates if update.site not in left_out], asked


def figures_of_round(state: RunState, stage: str, index: int) -> dict[str, dict[str, float]]:
    """The sites' validation figures in a finished round of a stage; none of round 0."""
    rows = [row["val"] for row in state.history if row["stage"] == stage and row["round"] == index]
    return rows[-1] if rows else {}


def ledger_heads(outcome: Outcome) -> dict[str, str]:
    """Heads of the sites' privacy ledgers, to be echoed with the next request."""
    heads = {name: reply.header["ledger"] for name, reply in sorted(outcome.replies.items())}
    return {name: head for name, head in heads.items() if head}


def privacy_claims(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """What the sites say of their privacy, those that say something that can be read."""
    claims = {name: parse_claim(reply.header["claim"]) for name, reply in sorted(outcome.replies.items())}
    return {name: claim for name, claim in claims.items() if claim}


def begin_stage(spec: RunSpec, stage: str, kinds: dict[str, str], guidance: Tensors | None) -> StageProgress:
    """The stage before its first round: what is frozen, and the tensors that will be exchanged."""
    base = start_state(spec, stage, guidance)
    current = {name: base[name] for name in kinds}
    return StageProgress(stage, frozen={n: v for n, v in base.items() if n not in kinds}, current=current)


def assess(
    members: Sites,
    spec: RunSpec,
    state: RunState,
    events: Events,
    fitted: Mapping[str, Calibration],
    test_s: float,
    sure: Mapping[str, Sureness],
) -> dict[str, dict[str, Any]]:
    """The cross-site matrix from what the sites let out of their test images: model -> site -> cell.

    Test images are asked for once, when nothing is left to be chosen. A site that lets nothing out, or is not there,
    has a cell without figures; no run fails by it. The last stage, which is the model, comes first; whoever said
    nothing of it within ``test_s`` seconds is not waited for again.
    """
    matrix: dict[str, dict[str, Any]] = {}
    asked: set[str] | None = None
    for stage in reversed(state.results):
        task, weights, own = finished_task(spec, state, stage)
        figures, outcome = members.assess(
            task, weights, own, fitted[stage], time.monotonic() + test_s, asked, sure.get(stage)
        )
        asked = set(figures)
        state.bytes_sent += outcome.bytes_sent
        matrix[stage] = {site: cell_from(figures.get(site, {}), spec.classes) for site in sorted(members.everyone())}
        events.emit("assessed", arm=spec.arm, stage=stage, sites=sorted(figures), missing=outcome.missing)
    return matrix


def check_same_settings(stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse to continue a run under another configuration.

    Raises:
        ModelFileError: names the keys that differ.
    """
    before, now = flattened(stored), flattened(given)
    name = before.get("spec.run_id")
    if name != now.get("spec.run_id") and {**before, "spec.run_id": ""} == {**now, "spec.run_id": ""}:
        raise ModelFileError(
            *renamed(str(name), str(now.get("spec.run_id"))),
        )
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
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


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
