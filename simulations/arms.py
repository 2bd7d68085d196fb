"""What a simulated run trains: the federation itself and the baselines it is held against.

Every arm is a federation run by the same coordinator and the same local update; only its sites
differ. *local* is a federation of one site; *pooled* is one site that holds the union; *plain*
trains a plain classifier on the same backbone in the same three ways. All have the same number of
rounds and passes over each image, the same grid of learning rates, and choose their round on their
own validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fed_diffmic.config.simulation import StagesConfig
from fed_diffmic.config.spec import STAGES
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.files import safe_name
from fed_diffmic.release.final import FinalModel
from simulations.sites import POOLED


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
    """

    final: FinalModel
    folder: Path
    lr_scale: float


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


def scaled(stages: StagesConfig, factor: float) -> StagesConfig:
    """Every stage's learning rate times ``factor``."""
    return replace(
        stages, **{name: replace(getattr(stages, name), lr=getattr(stages, name).lr * factor) for name in STAGES}
    )
