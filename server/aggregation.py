"""From a round's updates to the next global weights: what is plausible, what noise hides, what the algorithm makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from fed_diffmic.algorithms.base import SUMS, Algorithm, SiteUpdate, Sums, Tensors
from server.bounds import Bounds
from server.client_level import ClientLevel
from server.culprit import aggregated, summed
from server.exchange import TrainAnswer
from server.federation import Federation
from server.fold import folded
from server.keeping import heaviest
from server.leaving import leave_out, tell_clipped, tell_coarse
from server.outliers import plausible
from server.run_state import RunState
from server.stage import StageWork, check_aggregate


def aggregate(run: Federation, work: StageWork, answer: TrainAnswer, noise: ClientLevel) -> dict[str, int]:
    """What the algorithm makes of a round's updates or of their sums, written into the stage's progress.

    Args:
        work: the stage; its ``round`` still counts the rounds before.
        answer: the round's training.
        noise: what the algorithm sees of the updates, where the run has client-level privacy.

    Returns:
        the sites whose updates are in the aggregate, with the number of images that each says.

    Raises:
        RoundError: the updates cannot be aggregated, or too few of them are left.
        ConfigError, ModelFileError, MachineError: see :meth:`server.client_level.ClientLevel.protect`.
    """
    progress, kinds, index = work.progress, work.kinds, work.progress.round + 1
    stage, where = progress.name, f"stage {progress.name}, round {index}"
    sums = answer.sums
    if sums is not None:
        made = summed(lambda: from_sums(run, work, sums), sums.sites, where)
        return _settle(run, work, answer, made, sums.sites, {})
    # Under client-level privacy every update is clipped by itself: a bound made of the others' would leak them.
    bounds = Bounds() if noise.on else run.hooks.bounds
    sent = work.algorithm.broadcast(progress.current, progress.algorithm)
    judged = plausible(progress.current, sent, kinds, answer.updates, bounds)
    tell_clipped(run, judged.clipped, stage, index)
    rounds_before = len(run.run_state.history)
    seen = noise.protect(
        progress.current, kinds, judged.updates, stage=stage, round_index=index, rounds_before=rounds_before
    )
    most, before = 0.0 if noise.on else heaviest(run), {**progress.current, **sent}

    def step(some: Sequence[SiteUpdate]) -> tuple[Tensors, Tensors]:
        if work.algorithm.needs == SUMS:
            sums = folded(work.algorithm, before, kinds, some, most, run.store.checkpoints)
            return from_sums(run, work, sums)
        everyone = len(run.exchange.everyone())
        new, after = work.algorithm.aggregate(progress.current, kinds, some, progress.algorithm, index, everyone)
        return check_aggregate(progress.current, new, where), after

    new, server_state, culprit = aggregated(step, seen, progress.current, where)
    left_out = dict.fromkeys(judged.refused, "outlier") | ({culprit: "breaks"} if culprit else {})
    return _settle(run, work, answer, (new, server_state), judged.updates, left_out)


def from_sums(run: Federation, work: StageWork, sums: Sums) -> tuple[Tensors, Tensors]:
    """What the algorithm makes of a round's sums, checked.

    Raises:
        RoundError: nothing that can be used.
    """
    progress, index = work.progress, work.progress.round + 1
    tell_coarse(run, sums.coarse, progress.name, index)
    everyone = run.exchange.everyone()
    away = last_weights(run.run_state, everyone - {update.site for update in sums.sites})
    sums = replace(sums, share=share_of_all(sums.sites, work.algorithm, away))
    new, after = work.algorithm.from_sums(progress.current, work.kinds, sums, progress.algorithm, index, len(everyone))
    return check_aggregate(progress.current, new, f"stage {progress.name}, round {index}"), after


def last_weights(run_state: RunState, names: Set[str]) -> dict[str, int]:
    """What sites weighed in the last round that they were in; in none: the images that they said they have.

    Args:
        names: of the sites. 0 for one of which nothing is known.
    """
    found: dict[str, int] = {}
    for row in reversed(run_state.history):
        missing = names - found.keys()
        if not missing:
            break
        found |= {name: int(row["sites"][name]["num_examples"]) for name in missing if name in row["sites"]}
    claimed = {name: run_state.claims[name]["images"][0] for name in names if name in run_state.claims}
    return {name: found.get(name) or claimed.get(name) or 0 for name in sorted(names)}


def share_of_all(there: Sequence[SiteUpdate], algorithm: Algorithm, away: Mapping[str, int]) -> float:
    """What part of the weight of all sites of the run those have that are in a sum, as the algorithm weighs sites.

    Args:
        there: who is in it, at least one site.
        away: images of each other site; 0: nobody knows, so it counts for as many as the others have as a mean.
    """
    known = [*(update.num_examples for update in there), *(n for n in away.values() if n)]
    usual = max(1, round(sum(known) / len(known)))
    others = [SiteUpdate(name, {}, images or usual) for name, images in sorted(away.items())]
    weights = algorithm.raw_weights([*there, *others])
    return math.fsum(weights[update.site] for update in there) / math.fsum(weights.values())


def _settle(
    run: Federation,
    work: StageWork,
    answer: TrainAnswer,
    made: tuple[Tensors, Tensors],
    updates: Sequence[SiteUpdate],
    left_out: Mapping[str, str],
) -> dict[str, int]:
    """Write what was made into the stage's progress; who is in it."""
    progress = work.progress
    leave_out(run, left_out, answer, progress.name, progress.round + 1)
    progress.current, progress.algorithm = made
    kept = {site: digest for site, digest in answer.site_states.items() if digest and site not in left_out}
    progress.site_states |= kept
    return {update.site: update.num_examples for update in updates if update.site not in left_out}
