"""The federation, read top to bottom: stages, rounds, the best round, the calibration.

Every round ends with a checkpoint; a run that was killed at any moment continues from the last one
and ends with the same weights, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from flwr.serverapp import Grid

from fed_diffmic.config.folders import has_final
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.codecs import build_codec
from fed_diffmic.release.final import FinalModel, load_final
from server.aggregation import aggregate
from server.broadcast import Broadcast
from server.checkpoints import CheckpointStore
from server.client_level import ClientLevel
from server.delivery import deliver, delivers
from server.exchange import Exchange, Keep, MetricsAnswer, Outcome, TrainRequest
from server.federation import Federation
from server.finished import assess
from server.fitting import calibrate
from server.history import RoundDone, ledger_heads, round_row
from server.hooks import Hooks
from server.judges import is_judged
from server.judging import Judging
from server.keeping import keeping
from server.noisy import sites_of
from server.observers import Patience, RoundEvents, RoundObserver, Stop, stopped_before, told
from server.opening import check_same_study, open_run, open_stage
from server.prior import consortium_prior
from server.replies import Events
from server.run_state import RunState
from server.selection import NOBODY_SAYS
from server.sites import Sites
from server.stage import StageWork
from server.study import study_of_run
from server.sureness import conform
from server.terms import RunTerms
from server.trail import log_aggregate, log_chosen, sent_in_next
from server.unjudged import keep_last


def run_federation(
    grid: Grid,
    spec: RunSpec,
    store: CheckpointStore,
    events: Events,
    terms: RunTerms,
    *,
    hooks: Hooks | None = None,
    observers: Sequence[RoundObserver] = (),
) -> FinalModel:
    """Train the stages over the sites behind ``grid``, continuing what ``store`` holds.

    Args:
        grid: Flower's, in process or real.
        spec: what all sites have in common.
        store: checkpoints and the final model; held locked meanwhile.
        events: where facts go.
        terms: which stages and sites, and what a round needs.
        hooks: what a real coordinator adds.
        observers: told of every round, after those of the run itself.

    Raises:
        RoundError: a quorum was missed; names the missing sites and why.
        ModelFileError: weights or checkpoints that do not fit or are torn.
        MachineError: another process works on this run, or the disk is full.
    """
    hooks = hooks or Hooks()
    with store.locked():
        run_state = open_run(spec, store, events, terms, hooks)
        if has_final(store.folder):
            return resume_finished(grid, spec, store, events, terms, run_state, hooks)
        run = find_sites(grid, spec, store, events, terms, run_state, hooks, observers)
        for stage in terms.stages:
            if stage not in run_state.results:
                run_stage(run, stage)
        # Nothing is left to be chosen from here on: test images are asked about once, and last.
        fitted = {stage: calibrate(run, stage) for stage in run_state.results}
        sure = conform(run, fitted)
        tested = assess(run, fitted, sure)
        final = store.finish(run_state, spec, fitted, hooks, tested.matrix, run.exchange.heads, sure, tested.together)
        events.emit("federation_done", arm=spec.arm, bytes_sent=final.bytes_sent, digests=final.digests)
        hand_out(run.exchange, store, events, terms, final)
        return final


def hand_out(exchange: Exchange, store: CheckpointStore, events: Events, terms: RunTerms, final: FinalModel) -> None:
    """Send the signed model to the sites that take it; a simulation's, which nobody signed, goes nowhere."""
    if delivers(exchange.hooks, terms.deliver_s):
        without = deliver(exchange, store.folder, final, terms.deliver_s)
        events.emit("delivered", sites=sorted(exchange.everyone() - set(without)), missing=without)


def resume_finished(
    grid: Grid,
    spec: RunSpec,
    store: CheckpointStore,
    events: Events,
    terms: RunTerms,
    run_state: RunState,
    hooks: Hooks,
) -> FinalModel:
    """A run that ended: nothing is computed; the sites that have not got its model are offered it again."""
    final = load_final(store.folder, public_key=hooks.public_key)
    if delivers(hooks, terms.deliver_s):
        hand_out(sites_of_run(grid, spec, store, events, terms, run_state, hooks), store, events, terms, final)
    return final


def run_stage(run: Federation, stage: str) -> None:
    """All rounds of one stage; its best round becomes the stage's result."""
    spec, run_state, exchange, hooks = run.spec, run.run_state, run.exchange, run.hooks
    work = open_stage(run, stage)
    progress, rounds = work.progress, work.rounds
    place = {"arm": spec.arm, "stage": stage}
    run.events.emit("stage_started", **place, round=progress.round, rounds=rounds, base=work.task.digest)
    noise, broadcast = ClientLevel(spec.strategy, run.store.folder), Broadcast(build_codec(spec.strategy))
    judging = Judging(run, work)
    stop = stopped_before(run.observers, progress)
    while progress.round < rounds and stop is None:
        started, index = time.monotonic(), progress.round + 1
        deadline = started + run.terms.deadline_s
        run.events.emit("round_started", **place, round=index, rounds=rounds, sites=sorted(exchange.members))

        request = train_request(work, broadcast, run_state.ledgers, deadline, keeping(run, work, noise))
        trained, before = judging.train(request)
        examples = aggregate(run, work, trained, noise)
        judged = is_judged(run.terms, index, rounds)
        candidate, parcel = broadcast.settle(work, request.sent, judged=judged)
        # Before the candidate is sent: a site's own line of its evaluation must find the one that it comes of.
        made = log_aggregate(hooks, spec, progress, trained.outcome, candidate, work.algorithm)
        evaluated, waits = MetricsAnswer({}, Outcome()), judged and judging.waits(index)
        if judged and not waits:
            evaluated = judging.evaluate(candidate, index, run.terms.judged_by(deadline), parcel)
            judging.choose(candidate, index, evaluated)

        # With the checkpoint, never after it: a resumed run must not echo heads from before what the round spent.
        run_state.ledgers |= ledger_heads(trained.outcome)
        progress.round = index
        done = RoundDone(trained, examples, evaluated, made, time.monotonic() - started)
        run_state.bytes_sent += done.bytes_sent
        row = round_row(work, done, noise, hooks)
        if waits:
            judging.keep(row, candidate, parcel)
        else:
            run_state.history.append(row)
        run.store.save(run_state)
        # After the checkpoint: a log that says more than what is kept would name a round that a resumed run repeats.
        hooks.log("checkpoint", run=spec.run_id, **place, round=index)
        stop = told(run.observers, [before, None if waits else row], progress)
        del request, trained, candidate, parcel, evaluated, done  # what they hold is not kept for a round more
    judging.finish(time.monotonic() + run.terms.deadline_s)
    end_stage(run, work, stop)


def train_request(
    work: StageWork, broadcast: Broadcast, ledgers: dict[str, str], deadline: float, keep: Keep
) -> TrainRequest:
    """What asks for the next round's local updates."""
    progress = work.progress
    return TrainRequest(
        work.task,
        sent_in_next(progress, work.algorithm),
        work.algorithm,
        progress.round + 1,
        deadline,
        site_states=progress.site_states,
        kept_states=progress.best_states,
        ledgers=ledgers,
        parcel=broadcast.trained_from(work),
        keep=keep,
        kinds=work.kinds,
    )


def end_stage(run: Federation, work: StageWork, stop: Stop | None) -> None:
    """Take the best round as the stage's result, and keep it."""
    run_state, progress, stage = run.run_state, work.progress, work.progress.name
    place = {"arm": run.spec.arm, "stage": stage}
    if stop is not None and progress.round < work.rounds:
        run.events.emit("stage_stopped", **place, round=progress.round, rounds=work.rounds, reason=stop.reason)
    # Before the result is asked about (calibration, test images): as with every round's candidate.
    log_chosen(run.hooks, run.spec, progress, work.task.digest)
    run_state.results[stage] = {**progress.frozen, **(progress.best or progress.current)}
    if progress.best_states:
        run_state.personal[stage] = dict(progress.best_states)
    kept = keep_last(run.store.folder, work, run_state.history)
    run_state.progress = None
    run.store.save(run_state)
    chosen = progress.best_score != NOBODY_SAYS
    run.events.emit("stage_done", **place, best_round=progress.best_round, chosen=chosen, **kept)


def find_sites(
    grid: Grid,
    spec: RunSpec,
    store: CheckpointStore,
    events: Events,
    terms: RunTerms,
    run_state: RunState,
    hooks: Hooks,
    observers: Sequence[RoundObserver],
) -> Federation:
    """Wait for the run's sites; the run, with what they said of themselves when they were first found.

    Raises:
        RoundError: fewer than the quorum came.
        ModelFileError: the run is held to another study.
    """
    exchange = sites_of_run(grid, spec, store, events, terms, run_state, hooks)
    exchange.find(time.monotonic() + terms.deadline_s)
    if not run_state.counts:
        found = exchange.members.items()
        run_state.counts = {n: {"train": s.images[0], "classes": list(s.class_counts)} for n, s in found}
    prior = consortium_prior(run_state.counts, spec.task, hooks.bounds.share(len(run_state.counts)))
    own: list[RoundObserver] = [RoundEvents(events, spec)]
    if terms.patience:
        own.append(Patience(terms.patience, run_state.history))
    return Federation(exchange, spec, run_state, store, events, terms, prior, (*own, *observers))


def sites_of_run(
    grid: Grid,
    spec: RunSpec,
    store: CheckpointStore,
    events: Events,
    terms: RunTerms,
    run_state: RunState,
    hooks: Hooks,
) -> Sites:
    """The run's sites under its study, none of them looked for yet.

    Raises:
        ModelFileError: the run is held to another study.
    """
    study = study_of_run(
        store.folder, spec, stages=terms.stages, sites=terms.sites, test=terms.test_s > 0, signer=hooks.signer
    )
    check_same_study(run_state.settings, study.digest)
    return sites_of(grid, spec, events, terms, store.folder, hooks=hooks, claims=run_state.claims, study=study)
