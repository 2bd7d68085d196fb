"""A federation small enough to run a hundred times: toy networks, images in memory, fixed seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from client import site as client_site
from client.app import app
from fed_diffmic.config.simulation import ModelConfig, StageConfig, StagesConfig, StrategyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.release.final import FinalModel
from fed_diffmic.training import stages
from server import rounds
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from server.observers import RoundObserver
from server.terms import RunTerms
from simulations.grid import InProcessGrid

SIDE = 8
CLASSES = ("benign", "malignant", "other")


class ToyNet(nn.Module):
    """Something frozen, something normalised, something trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3 * SIDE * SIDE, 8)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen(images.flatten(1))))


class ToyCache:
    """Images in memory, behind the image cache's one method that training uses."""

    def __init__(self, images: torch.Tensor) -> None:
        self.pixels = images

    def images(self, rows: np.ndarray) -> torch.Tensor:
        return self.pixels[torch.from_numpy(np.asarray(rows))]


def toy_site(name: str, seed: int, count: int = 24, side: int = SIDE) -> SiteData:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    pixels = rng.integers(0, 120, (count, 3, side, side))
    pixels[:, :, :, 0] += 40 * labels[:, None, None]
    cache: Any = ToyCache(torch.from_numpy(pixels.astype(np.uint8)))
    keys = np.arange(count).astype(np.uint64) + np.uint64(1000 * seed)

    def part(rows: np.ndarray) -> Examples:
        return Examples(rows, labels[rows].astype(np.int64), rows.astype(str), keys[rows], cache)

    rows = np.arange(count)
    cut = count // 2
    return SiteData(
        name, "multiclass", CLASSES, part(rows[:cut]), part(rows[cut : cut + cut // 2]), part(rows[cut + cut // 2 :])
    )


def toy_spec(
    keep: bool = False, ema: float = 0.5, rounds: int = 2, strategy: StrategyConfig | None = None, **stage: Any
) -> RunSpec:
    cfg = StageConfig(**{"rounds": rounds, "batch_size": 4, "lr": 1e-2, "augment": False, "ema": ema, **stage})
    return RunSpec(
        run_id="toy",
        arm="federated",
        seed=3,
        task="multiclass",
        classes=CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        modality="none",
        model=ModelConfig(image_side=32),
        stages=StagesConfig(guidance=cfg, diffusion=cfg, plain=cfg),
        strategy=replace(strategy or StrategyConfig(), keep_optimizer_state=keep),
    )


def install_toy_networks(setattr_: Any = setattr) -> None:
    """Replace the real networks; ``setattr_`` may be pytest's ``monkeypatch.setattr``."""
    for name in ("build_guidance", "build_plain"):
        setattr_(stages, name, lambda *_: ToyNet())


class ToySource:
    """Where the virtual sites' data come from, and what may go wrong there."""

    def __init__(self, sites: Mapping[str, SiteData]) -> None:
        self.sites = sites
        self.fail: dict[str, Exception] = {}

    def __call__(self, context: Any, spec: Any, header: Any) -> SiteData:
        name = str(context.node_config["site"])
        if name in self.fail:
            raise self.fail[name]
        return self.sites[name]


@dataclass
class Events:
    """Collects what would be logged."""

    log: list[dict[str, Any]]

    def emit(self, kind: str, **facts: Any) -> None:
        self.log.append({"kind": kind, **facts})

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.log]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.log if event["kind"] == kind]


def toy_grid(
    folder: Path, names: tuple[str, ...] = ("a", "b"), source: ToySource | None = None, **node_config: Any
) -> tuple[InProcessGrid, ToySource]:
    source = source or ToySource({name: toy_site(name, seed) for seed, name in enumerate(names, start=1)})
    client_site.register_source(source)
    configs = [{"site": name, "site-dir": str(folder / "sites" / name), **node_config} for name in names]
    return InProcessGrid(app, configs), source


def federate(
    grid: Any,
    spec: RunSpec,
    store: CheckpointStore,
    events: Any,
    *,
    hooks: Hooks | None = None,
    observers: Sequence[RoundObserver] = (),
    **terms: Any,
) -> FinalModel:
    """A run under the terms that are named."""
    return rounds.run_federation(grid, spec, store, events, RunTerms(**terms), hooks=hooks, observers=observers)


def short_run(folder: Path, grid: InProcessGrid, spec: Any = None, events: Any = None, **settings: Any) -> FinalModel:
    """A run of one stage over the sites ``a`` and ``b``, unless the settings say otherwise."""
    given = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 5.0, **settings}
    return federate(grid, spec or toy_spec(), CheckpointStore(folder), events or Events([]), **given)
