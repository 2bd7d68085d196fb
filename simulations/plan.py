"""``fed-diffmic simulate --plan``: what a run would do, before it does it: sites, images, rounds, bytes, time.

The data are read and divided as the run does it, in a folder that is removed again; of each stage a few real steps are
made on this machine, and their time is scaled. Nothing is trained, and run.dir stays as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.preflight.estimate import StageEstimate, estimate_stage
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.exchange.codecs import build_codec
from fed_diffmic.reporting.view import duration, size
from simulations.arms import Arm, arms_of, budget, trials_of
from simulations.run import choose_device
from simulations.sites import VirtualSites, build_sites

MANY = 10**6
MEASURED_S = 0.5
"""About how long the steps of a stage are measured."""


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        device: where it would compute.
        sites: images in training, validation and test at each site.
        rounds: of each stage of the federation.
        arms: names of all that is trained: the federation and its baselines.
        steps: seconds of one optimizer step of each stage, measured here.
        bytes: of tensors that cross between sites and coordinator in the federation; about.
        seconds: of all arms, without reading images and metrics at the end; about.
        federation_seconds: of the federation alone.
    """

    device: str
    sites: Mapping[str, tuple[int, int, int]]
    rounds: Mapping[str, int]
    arms: tuple[str, ...]
    steps: Mapping[str, float]
    bytes: int
    seconds: float
    federation_seconds: float


def make_plan(config: SimulateConfig) -> Plan:
    """Read the data, divide them, measure steps.

    Raises:
        DataError, PartitionError, ConfigError, MachineError: as the run would.
    """
    device = choose_device(config.run.device)
    with tempfile.TemporaryDirectory(prefix="fed-diffmic-plan-") as scratch:
        sites = build_sites(config, Path(scratch))
        arms = arms_of(config.baselines, list(sites.sites), config.stages)
        spec = make_spec(config, classes=sites.classes, task=sites.task, run_id="plan", arm=arms[0].name, device=device)
        largest = max(sites.sites.values(), key=lambda data: len(data.train))
        stages = dict.fromkeys(stage for arm in arms for stage in arm.stages)
        measured = {stage: estimate_stage(spec, stage, largest, device, MEASURED_S) for stage in stages}
        at_once = len(sites.sites) if config.run.backend == "ray" else 1
        seconds = {
            arm.name: len(trials_of(arm, config.run))
            * _arm_seconds(
                replace(spec, stages=budget(arm, spec.stages, len(sites.sites))),
                arm,
                sites,
                measured,
                len(largest.val),
                at_once,
            )
            for arm in arms
        }
        return Plan(
            device=device,
            sites={name: (len(data.train), len(data.val), len(data.test)) for name, data in sites.sites.items()},
            rounds={stage: int(spec.stage(stage).rounds or 0) for stage in arms[0].stages},
            arms=tuple(seconds),
            steps={stage: one.train_s / one.steps for stage, one in measured.items()},
            bytes=len(trials_of(arms[0], config.run))
            * sum(_stage_bytes(spec, stage, measured[stage], len(sites.sites)) for stage in arms[0].stages),
            seconds=sum(seconds.values()),
            federation_seconds=seconds[arms[0].name],
        )


def _stage_bytes(spec: RunSpec, stage: str, measured: StageEstimate, sites: int) -> int:
    """To each site once the whole state; each round the update back and the new weights there, coded.

    With a moving average the weights that are judged are others than those that are trained from: both go there.
    """
    cfg, codec = spec.stage(stage), build_codec(spec.strategy)
    sizes = sorted(codec.sizes(MANY))
    coded = measured.update_bytes * sizes[len(sizes) // 2] / (4 * MANY)
    rounds = int(cfg.rounds or 0)
    sets = 3 * rounds - 1 if cfg.ema else 2 * rounds
    return round(sites * (measured.base_bytes + sets * coded))


def _arm_seconds(
    spec: RunSpec, arm: Arm, sites: VirtualSites, measured: Mapping[str, StageEstimate], val: int, at_once: int
) -> float:
    """Seconds of an arm: each site's steps and validation images, at the measured pace."""
    total = 0.0
    for stage in arm.stages:
        one, cfg = measured[stage], spec.stage(stage)
        each = []
        for name in arm.sites:
            data = sites.get(name)
            train = one.train_s * cfg.local_steps(len(data.train)) / one.steps
            each.append(train + one.evaluate_s * len(data.val) / max(1, val))
        total += int(cfg.rounds or 0) * (sum(each) / min(at_once, len(each))) + one.first_s
    return total


def plan_text(plan: Plan, run_dir: str | None) -> str:
    """The plan for people."""
    lines = [f"plan of a run in {run_dir or 'a new folder below runs/'}; nothing was trained, nothing was left there"]
    width = max(len("site"), *(len(name) for name in plan.sites), len("all"))
    lines.append(f"{'site':<{width}} {'train':>7} {'val':>7} {'test':>7}")
    rows = [*plan.sites.items(), ("all", _sums(list(plan.sites.values())))]
    lines += [f"{name:<{width}} {train:>7} {val:>7} {test:>7}" for name, (train, val, test) in rows]
    lines.append("rounds  " + ", ".join(f"{stage} {count}" for stage, count in plan.rounds.items()))
    lines.append(f"arms    {len(plan.arms)}: {', '.join(plan.arms)}")
    lines.append(f"bytes   about {size(plan.bytes)} between {len(plan.sites)} sites and the coordinator (federation)")
    paces = ", ".join(f"{stage} {1000 * pace:.0f} ms" for stage, pace in plan.steps.items())
    lines.append(
        f"time    about {duration(round(plan.seconds))} on {plan.device}, of that the federation "
        f"{duration(round(plan.federation_seconds))}; one step: {paces}. Reading images and the metrics at the end "
        "come on top"
    )
    return "\n".join(lines)


def _sums(rows: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    train, val, test = (sum(column) for column in zip(*rows, strict=True))
    return train, val, test
