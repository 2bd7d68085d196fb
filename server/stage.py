"""What surrounds the rounds of one stage: its start, the moving average, what an aggregation may return, the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fed_diffmic.algorithms.base import Algorithm, Tensors
from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ConfigError, ModelFileError, RoundError
from fed_diffmic.files import load_tensors
from fed_diffmic.training.stages import GUIDANCE_PREFIX, build_module, exchanged, full_state, initial_state, load_state
from server.exchange import MetricsAnswer, StageTask
from server.run_state import StageProgress
from server.selection import is_better, is_better_sum, selection_score


@dataclass(frozen=True)
class StageWork:
    """A stage under way: what its rounds have in common.

    Attributes:
        config: of the stage.
        task: what its requests have in common.
        algorithm: whose server half aggregates.
        kinds: of the exchanged tensors, by name.
        progress: where the stage stands; changed by every round.
        share: the largest share of one site in averages.
        guarded: whether one site of the run is to be withstood.
    """

    config: StageConfig
    task: StageTask
    algorithm: Algorithm
    kinds: Mapping[str, str]
    progress: StageProgress
    share: float = 1.0
    guarded: bool = False

    @property
    def rounds(self) -> int:
        """The most rounds that the stage has."""
        return self.config.rounds or 0

    @property
    def own_states(self) -> dict[str, str]:
        """Digest of the state of which each site's model takes a part; none where the algorithm keeps no such part."""
        return self.progress.site_states if self.algorithm.personal else {}


def begin_stage(spec: RunSpec, stage: str, kinds: Mapping[str, str], guidance: Tensors | None) -> StageProgress:
    """The stage before its first round: what is frozen, and the tensors that will be exchanged."""
    base = start_state(spec, stage, guidance)
    current = {name: base[name] for name in kinds}
    return StageProgress(stage, frozen={n: v for n, v in base.items() if n not in kinds}, current=current)


def start_state(spec: RunSpec, stage: str, guidance: Tensors | None) -> Tensors:
    """The full state a stage starts from: seeded, or the file that ``stages.<stage>.init`` names.

    The diffusion stage always stands on this run's own guidance network, whatever its file holds.

    Raises:
        ModelFileError: the file or the guidance does not fit the model, or the file holds what is no number.
    """
    init = spec.stage(stage).init
    if init is None:
        return initial_state(spec, stage, guidance)
    module = build_module(spec, stage)
    tensors = load_tensors(init)
    if stage == "diffusion" and guidance is not None:
        own = {name: value for name, value in tensors.items() if not name.startswith(GUIDANCE_PREFIX)}
        tensors = own | {GUIDANCE_PREFIX + name: value for name, value in guidance.items()}
    load_state(module.network, tensors, f"stages.{stage}.init")
    state = full_state(module)
    # Before a site has spent anything on it: what comes of such weights is refused only when it is there.
    broken = sorted(name for name, value in state.items() if value.dtype.kind == "f" and not np.isfinite(value).all())
    if broken:
        raise ModelFileError(
            f"stages.{stage}.init: {len(broken)} tensors are infinite or not a number ({', '.join(broken[:3])})",
            "Give the weights of a stage that ended well.",
        )
    return state


def exchanged_kinds(spec: RunSpec, stage: str, algorithm: Algorithm) -> dict[str, str]:
    """Names that cross the boundary each round, with their kind: not what the algorithm keeps at the sites.

    Raises:
        ConfigError: the algorithm keeps everything that the stage trains.
    """
    module = build_module(spec, stage)
    names = exchanged(module)
    kept = algorithm.kept(module.network, names)
    if kept >= names.keys():
        raise ConfigError(
            "strategy.name", spec.strategy.name, f"a strategy that shares some of what stage {stage} trains"
        )
    return {name: kind for name, kind in names.items() if name not in kept}


def moving_average(average: Tensors, current: Tensors, decay: float) -> Tensors:
    """``decay * average + (1 - decay) * current`` for floats, from the first round's weights on.

    Counters are taken as they are. With no decay there is no average.
    """
    if decay == 0.0:
        return {}
    if not average:
        return {name: value.copy() for name, value in current.items()}
    result: Tensors = {}
    for name, value in current.items():
        if value.dtype.kind == "f":
            mixed = decay * average[name].astype(np.float64) + (1.0 - decay) * value.astype(np.float64)
            result[name] = np.asarray(mixed.astype(value.dtype))
        else:
            result[name] = value.copy()
    return result


def check_aggregate(current: Tensors, new: Tensors, where: str) -> Tensors:
    """``new`` if it has the names, shapes and dtypes of ``current`` and finite numbers.

    Raises:
        RoundError: an algorithm returned something else.
    """
    if set(new) != set(current):
        raise RoundError(f"{where}: the algorithm returned other tensors than it was given")
    for name, value in new.items():
        if value.shape != current[name].shape or value.dtype != current[name].dtype:
            raise RoundError(f"{where}: the algorithm changed the shape or dtype of {name}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RoundError(f"{where}: aggregation made {name} infinite or not a number", "Lower the learning rates.")
    return new


def choose(
    work: StageWork,
    candidate: Tensors,
    index: int,
    answer: MetricsAnswer,
    best_metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """Make the round the stage's best one so far if the sites' metrics say so; what stays is what was judged.

    Of sums nobody can take one site's word out: the round with the largest figure over all images is kept, and a round
    of which there is no sum takes the place of none of which there is one.

    Args:
        work: the stage, with the sites' states of that round.
        candidate: the weights that the sites judged.
        index: the round, from 1.
        answer: what they said of them.
        best_metrics: what they said of the best round so far.
    """
    progress, select, metrics = work.progress, work.config.select, answer.metrics
    if answer.summed is not None:
        score = selection_score({"": answer.summed} if answer.summed else {}, select)
        better = is_better_sum(score, progress.best_score)
    else:
        score = selection_score(metrics, select, work.share, guarded=work.guarded)
        better = is_better(score, progress.best_score, metrics, best_metrics, select, work.guarded)
    if better:
        progress.best, progress.best_round, progress.best_score = candidate, index, score
        progress.best_states = dict(work.own_states)
