"""From a round's updates to the next global weights: what is plausible, what noise hides, what the algorithm makes."""

from __future__ import annotations

from collections.abc import Sequence

from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from server.bounds import Bounds
from server.client_level import ClientLevel
from server.culprit import aggregated
from server.exchange import TrainAnswer
from server.federation import Federation
from server.leaving import leave_out, tell_clipped
from server.outliers import plausible
from server.stage import StageWork, check_aggregate


def aggregate(run: Federation, work: StageWork, answer: TrainAnswer, noise: ClientLevel) -> dict[str, int]:
    """What the algorithm makes of a round's updates, written into the stage's progress.

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
    # Under client-level privacy every update is clipped by itself: a bound made of the others' would leak them.
    bounds = Bounds() if noise.on else run.hooks.bounds
    sent = work.algorithm.broadcast(progress.current, progress.algorithm)
    judged = plausible(progress.current, sent, kinds, answer.updates, bounds)
    tell_clipped(run, judged.clipped, stage, index)
    rounds_before = len(run.run_state.history)
    seen = noise.protect(
        progress.current, kinds, judged.updates, stage=stage, round_index=index, rounds_before=rounds_before
    )

    def step(some: Sequence[SiteUpdate]) -> tuple[Tensors, Tensors]:
        everyone = len(run.exchange.everyone())
        new, after = work.algorithm.aggregate(progress.current, kinds, some, progress.algorithm, index, everyone)
        return check_aggregate(progress.current, new, where), after

    new, server_state, culprit = aggregated(step, seen, progress.current, where)
    left_out = dict.fromkeys(judged.refused, "outlier") | ({culprit: "breaks"} if culprit else {})
    leave_out(run, left_out, answer, stage, index)
    progress.current, progress.algorithm = new, server_state
    kept = {site: digest for site, digest in answer.site_states.items() if digest and site not in left_out}
    progress.site_states |= kept
    return {update.site: update.num_examples for update in judged.updates if update.site not in left_out}
