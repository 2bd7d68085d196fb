"""Group ``policy.limits``: how much of its machine a site lends, whatever a run asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fed_diffmic.config.fields import Checked, option

LEAST_THREADS = 8
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Limits(Checked):
    """Group ``policy.limits``: how much of the machine a request may use.

    The defaults let the presets tiny, compact and paper pass on a machine with 16 GiB; both presets of the policy have
    them, and so has a configuration that does not name them.
    """

    image_side: int = option(512, "largest side of the images that a run may ask for, pixels", ge=32, le=4096)
    parameters: float = option(
        400.0, "largest number of parameters of a run's whole network, millions (paper: 155)", gt=0, le=1e6
    )
    work_mib: float = option(
        12288.0,
        "most memory that training or evaluation may need by an upper estimate made from the run's specification "
        "before anything is built, MiB",
        gt=0,
        le=1e8,
    )
    threads: int = option(
        0, "most torch threads that a run may ask for; 0: twice the cores of the machine, at least 8", ge=0, le=1024
    )
    sampling: int = option(
        2000, "most evaluations of the sampler for an image: sampling_steps times sampling_starts", ge=1, le=10**9
    )
    cache_mib: float = option(32768.0, "most space of decoded copies of the images, MiB", gt=0, le=1e9)
    prepare_s: float = option(
        14400.0, "seconds that reading and decoding the images for a request may take", gt=0, le=30 * 86400
    )
    memory_mib: float = option(
        0.0,
        "memory of the worker (resident, without mapped files) at which the supervisor ends it, MiB; 0: eight tenths "
        "of what the machine or the container has",
        ge=0,
        le=1e8,
    )
    grace_s: float = option(
        30.0, "seconds by which a task may exceed its time until the supervisor ends the worker", ge=0.5, le=3600
    )


def most_threads(limits: Limits) -> int:
    """Torch threads that a run may ask for on this machine."""
    return limits.threads or max(LEAST_THREADS, 2 * (os.cpu_count() or 1))
