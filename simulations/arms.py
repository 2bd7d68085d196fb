"""What a simulated run trains: the federation itself and the baselines it is held against.

Every arm is run by the same coordinator and the same local update. *local* is one site; *pooled* is one site that
holds the union; *plain* trains a plain classifier on the same backbone in the same three ways. All have the same number
of rounds and passes over each image (:func:`budget`), the same grid of learning rates, and choose their round on their
own validation images. So is the optimizer, where ``run.optimizers`` names several. Who is alone trains plainly,
whatever the strategy (:func:`alone`); ``run.local_optimizers`` lets a site alone try what a hospital would try besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fed_diffmic.config.simulation import RunConfig, StagesConfig, StrategyConfig
from fed_diffmic.config.spec import STAGES
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.files import safe_name
from fed_diffmic.release.final import FinalModel
from simulations.sites import POOLED

MOST_STEPS = 1_000_000
"""That a stage may count (``stages.*.steps``)."""
SGD_RATE = 100.0
"""How much larger a learning rate SGD with momentum takes than AdamW: 0.1 and 0.001 are the usual ones."""


@dataclass(frozen=True)
class Arm:
    """One training inside a run.

    Attributes:
        name: ``federated``, ``local/<site>``, ``pooled``, or one of these three after ``plain/``.
        stages: in order.
        sites: the sites that take part.
    """

    name: str
    stages: tuple[str, ...]
    sites: tuple[str, ...]

    @property
    def alone(self) -> bool:
        """Whether there is nobody to federate with: one site by itself, or all images in one place."""
        return not self.name.endswith("federated")

    def folder(self, run_dir: Path) -> Path:
        """Where the arm's checkpoints and final model lie; the federation's is the run's own folder."""
        return run_dir if self.name == "federated" else run_dir / "arms" / safe_name(self.name)


@dataclass(frozen=True)
class TrainedArm:
    """What came of an arm.

    Attributes:
        final: its model, with the learning rate that did best on its own validation images.
        folder: where that lies.
        lr_scale: the factor on every learning rate.
        optimizer: that did best; empty: the stage's, as nothing was tried.
    """

    final: FinalModel
    folder: Path
    lr_scale: float
    optimizer: str = ""


def arms_of(baselines: Sequence[str], sites: Sequence[str], stages: StagesConfig) -> list[Arm]:
    """Every arm of a run, the federation first."""
    both = trained_stages(stages)
    everyone = tuple(sorted(sites))
    arms = [Arm("federated", both, everyone)]
    if "local" in baselines:
        arms += [Arm(f"local/{site}", both, (site,)) for site in everyone]
    if "pooled" in baselines:
        arms.append(Arm("pooled", both, (POOLED,)))
    if "plain" in baselines and both != ("plain",):
        arms.append(Arm("plain/federated", ("plain",), everyone))
        arms += [Arm(f"plain/local/{site}", ("plain",), (site,)) for site in everyone]
        arms.append(Arm("plain/pooled", ("plain",), (POOLED,)))
    return arms


@dataclass(frozen=True)
class Trial:
    """One way to train an arm.

    Attributes:
        lr_scale: factor on every learning rate.
        optimizer: ``adamw`` or ``sgd`` in every stage; empty: each stage's own.
    """

    lr_scale: float
    optimizer: str = ""

    @property
    def name(self) -> str:
        """Its folder, where there are several."""
        return f"{self.optimizer}{'-' if self.optimizer else ''}lr-{self.lr_scale:g}"

    def stages(self, stages: StagesConfig) -> StagesConfig:
        """The stages trained so."""
        return scaled(with_optimizer(stages, self.optimizer) if self.optimizer else stages, self.lr_scale)


def trials_of(arm: Arm, run: RunConfig) -> list[Trial]:
    """The grid of an arm: learning rates and optimizers; one site alone may have optimizers of its own to try."""
    by_itself = arm.alone and arm.sites != (POOLED,)
    optimizers = (run.local_optimizers if by_itself else []) or run.optimizers or [""]
    return [Trial(factor, optimizer) for optimizer in optimizers for factor in run.lr_scales]


def alone() -> StrategyConfig:
    """How one site trains that has nobody to federate with: plainly, round after round from where it stopped.

    A strategy run over one site is no plain training: FedDyn's penalty and its server's step, FedProx's pull towards
    the round's begin, a server's optimizer, coded updates all work on a site that has nobody to agree with, and a
    hospital that trains alone has none of them. So a baseline is the same whatever it is held against.
    """
    return StrategyConfig(keep_optimizer_state=True)


def budget(arm: Arm, stages: StagesConfig, sites: int) -> StagesConfig:
    """The stages as an arm trains them: where steps are counted, who has all images takes as many as all sites do.

    Passes grow with the images by themselves; with the steps of one site alone the union would be looked at a
    ``sites``-th as often as the federation looks at it.
    """
    if arm.sites != (POOLED,):
        return stages
    counted = {name: min(getattr(stages, name).steps * sites, MOST_STEPS) for name in STAGES}
    return replace(stages, **{name: replace(getattr(stages, name), steps=steps) for name, steps in counted.items()})


def with_optimizer(stages: StagesConfig, optimizer: str) -> StagesConfig:
    """Every stage with that optimizer; one that had the other has its learning rate times or over :data:`SGD_RATE`."""
    changed: dict[str, Any] = {}
    for name in STAGES:
        cfg = getattr(stages, name)
        if cfg.optimizer != optimizer:
            changed[name] = replace(
                cfg, optimizer=optimizer, lr=cfg.lr * SGD_RATE if optimizer == "sgd" else cfg.lr / SGD_RATE
            )
    return replace(stages, **changed)


def scaled(stages: StagesConfig, factor: float) -> StagesConfig:
    """Every stage's learning rate times ``factor``."""
    return replace(
        stages, **{name: replace(getattr(stages, name), lr=getattr(stages, name).lr * factor) for name in STAGES}
    )
