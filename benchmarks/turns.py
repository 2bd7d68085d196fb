"""Seconds of several ways of doing the same, taken by turns so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def seconds_by_turns(steps: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step, after one that is not counted: of the processor, or of the wall for a device."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                taken[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in taken.items()}
