"""How much of the machine a request would use, against ``policy.limits``: judged before anything is opened or built."""

from __future__ import annotations

from fed_diffmic.config.policy_limits import Limits, most_threads
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange.failures import LIMIT_MEMORY, LIMIT_SIZE

Broken = tuple[int, str]
"""Code and detail of a limit that is exceeded."""
_MIB = 2**20


def beyond_limits(limits: Limits, kind: str, spec: RunSpec, stage: str | None) -> Broken | None:
    """The first limit that a request exceeds, or none.

    What costs nothing to look at comes first; the network's size is found without allocating it
    (:mod:`fed_diffmic.training.size`). A specification that describes no possible network passes: building it fails
    with its own code before it uses anything.

    Args:
        kind: ``query``, ``train``, ``evaluate``, ``conform`` or ``assess``.
        spec: the request's.
        stage: the request's; none for ``query``.
    """
    model = spec.model
    if model.image_side > limits.image_side:
        return _size("images", f"{model.image_side} pixels", "image_side", limits.image_side)
    allowed = most_threads(limits)
    if not 1 <= spec.threads <= allowed:
        return _size("threads", str(spec.threads)[:40], "threads", allowed)
    starts = model.sampling_starts * model.sampling_steps
    if starts > limits.sampling:
        return _size("sampling", f"{starts} evaluations for an image", "sampling", limits.sampling)
    try:
        return _beyond_network(limits, kind, spec, stage)
    except ConfigError:
        return None
    except Exception as error:  # an architecture fails in its own way: any type, from any depth
        return LIMIT_SIZE, f"the size of the network could not be found: {type(error).__name__}"


def _beyond_network(limits: Limits, kind: str, spec: RunSpec, stage: str | None) -> Broken | None:
    from fed_diffmic.training.size import stage_size, whole_parameters  # loads torch, which an explanation need not

    millions = whole_parameters(spec) / 1e6
    if millions > limits.parameters:
        return _size("parameters", f"{millions:.1f} million", "parameters", limits.parameters)
    if stage is None:
        return None
    size = stage_size(spec, stage)
    if kind == "train":
        needed = size.training(spec.stage(stage).batch_size) / _MIB
    else:
        needed = size.evaluation(spec.model.sampling_starts) / _MIB
    if needed > limits.work_mib:
        return LIMIT_MEMORY, f"about {needed:.0f} MiB needed; policy.limits.work_mib is {limits.work_mib:g}"
    return None


def _size(what: str, asked: str, key: str, allowed: float) -> Broken:
    return LIMIT_SIZE, f"{what}: {asked}; policy.limits.{key} is {allowed:g}"


def limit_sentences(limits: Limits) -> list[str]:
    """The limits in sentences, every one of them, with all its digits."""
    threads = f"{limits.threads}" if limits.threads else "twice the cores of the machine, at least 8"
    memory = f"{_number(limits.memory_mib)} MiB" if limits.memory_mib else "eight tenths of the machine's memory"
    number = _number
    return [
        f"Images of at most {limits.image_side} pixels a side, a network of at most {number(limits.parameters)} "
        f"million parameters, at most {limits.sampling} evaluations of the sampler for an image.",
        f"Torch threads: at most {threads}.",
        f"Nothing is begun that would need more than {number(limits.work_mib)} MiB of memory by an upper estimate; a "
        f"process that has {memory} is ended.",
        f"Decoded copies of the images take at most {number(limits.cache_mib)} MiB of the disk. Reading and decoding "
        f"them for a request takes at most {number(limits.prepare_s)} seconds.",
        f"A task that has not stopped {number(limits.grace_s)} seconds after its time is ended from outside.",
    ]


def _number(number: float) -> str:
    return f"{int(number):,}" if float(number).is_integer() else repr(float(number))
