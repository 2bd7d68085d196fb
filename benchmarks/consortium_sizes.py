"""Bytes, seconds and memory of a consortium's round for each size of model and number of sites, before and now.

"Before" is two messages a round, the weights in float32; "now" is one, in the codec that is asked for (float32, the
default, unless another is). Both are run by the same program one after the other, so that the machine and whatever
else it does are as alike as they can be.
Both stages are run for two rounds; told is the second stage, whose model is the larger one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.consortium_memory import Measured, names, run_once, sized

ROUNDS = 2
ROLES = ("coordinator", "SuperLink", "SuperNode", "worker")
BEFORE, NOW = "before", "now"


def measure_sizes(folder: Path, sizes: Sequence[str], sites: Sequence[int], latent: int, codec: str) -> str:
    """Run each, print its row as it comes, and give the table."""
    rows = []
    for size in sizes:
        for number in sites:
            for when in (BEFORE, NOW):
                own = folder / f"{size}-{number}-{when}"
                found = run_once(
                    own,
                    settings(size, latent, "float32" if when == BEFORE else codec),
                    names(number),
                    exchanges=messages(when),
                )
                rows.append(row(size, number, when, found))
                print(rows[-1], flush=True)
    load = os.getloadavg()
    what = "bytes of a site and round, MB | seconds of a round"
    head = f"| model | sites | | {what} | {' | '.join(ROLES)} | together | ended |"
    lines = [
        head,
        "|" + "---|" * (len(ROLES) + 7),
        *rows,
        "",
        "Memory: the most that a process held, MB; of the sites' the largest.",
    ]
    return "\n".join(
        [*lines, f"{os.cpu_count()} cores; load average in the end: {load[0]:.1f} (1 min), {load[2]:.1f} (15 min)"]
    )


def settings(size: str, latent: int, codec: str) -> dict[str, Any]:
    """Of a run, as the harness takes them."""
    return {**sized(size, ROUNDS, latent), "strategy_settings": {"codec": codec}}


def messages(when: str) -> str:
    """``run.exchanges``."""
    return "two" if when == BEFORE else "one"


def row(size: str, sites: int, when: str, found: Measured) -> str:
    """One run's line: of the second stage's rounds, the mean."""
    rounds = [event for event in found.rounds if event["stage"] == "diffusion"]
    each = len(rounds) or 1
    sent = sum(event["bytes_sent"] for event in rounds) / each / sites / 1e6
    took = sum(event["seconds"] for event in rounds) / each
    most = {role: max((m for (r, _), (m, _) in found.peaks.peak.items() if r == role), default=0.0) for role in ROLES}
    cells = [size, str(sites), when, f"{sent:.1f}", f"{took:.1f}", *(f"{most[role]:.0f}" for role in ROLES)]
    return f"| {' | '.join(cells)} | {found.peaks.total:.0f} | {'well' if found.whole else found.said} |"
