"""What surrounds the rounds of one stage: its start, the moving average, what an aggregation may return."""

from __future__ import annotations

import numpy as np

from fed_diffmic.algorithms.base import Algorithm, Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ConfigError, RoundError
from fed_diffmic.files import load_tensors
from fed_diffmic.training.stages import GUIDANCE_PREFIX, build_module, exchanged, full_state, initial_state, load_state


def start_state(spec: RunSpec, stage: str, guidance: Tensors | None) -> Tensors:
    """The full state a stage starts from: seeded, or the file that ``stages.<stage>.init`` names.

    The diffusion stage always stands on this run's own guidance network, whatever its file holds.

    Raises:
        ModelFileError: the file or the guidance does not fit the model.
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
    return full_state(module)


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
