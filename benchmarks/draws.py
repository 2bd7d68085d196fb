"""What several noise draws for a unit buy under differential privacy: how much of a clipped gradient points rightly.

``python benchmarks/draws.py [--units N] [--repeats N] RUN_DIR``: the run's diffusion stage (frozen encoders) on
training images of one of its sites. A unit's draws are averaged before it is clipped (``stages.diffusion.draws``), so
more of them leave less of the bound ``C`` to the chance of timestep and noise. For a fresh head of either kind and for
the run's own it prints, for each number of draws, the mean over units of the clipped gradient, projected on the
direction of the gradient that 256 draws give without clipping, as a share of ``C``; the same over that of one draw
(noise has the same size whatever the draws are, so this is the gain in signal over noise); and the time of a unit over
that with one draw.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fed_diffmic.config.compose import compose
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.data.site import Examples
from fed_diffmic.privacy.dp_sgd import Source
from fed_diffmic.privacy.per_sample import summed
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.training.features import FeatureStore
from fed_diffmic.training.losses import label_prior, prior_offset
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import build_module, initial_state, load_state
from simulations.sites import build_sites

DRAWS = (1, 2, 4, 8, 16, 32)
REFERENCE = 256
UNCLIPPED = 1e9


def head(final: FinalModel, kind: str, draws: int) -> StageModule:
    """The diffusion stage with ``draws`` for each unit: a fresh head of a kind, or the run's ``own``."""
    diffusion = replace(final.spec.stages.diffusion, draws=draws)
    model = final.spec.model if kind == "own" else replace(final.spec.model, denoiser=kind)
    spec = replace(final.spec, model=model, stages=replace(final.spec.stages, diffusion=diffusion))
    module = build_module(spec, "diffusion")
    fresh = initial_state(replace(spec, model=replace(model, weights=None)), "diffusion", final.states["guidance"])
    encoders = {name: value for name, value in final.states["diffusion"].items() if "_encoder." in name}
    load_state(module.network, final.states["diffusion"] if kind == "own" else {**fresh, **encoders})
    return module


def gradient(module: StageModule, units: Examples, bound: float, seed: int, store: FeatureStore) -> torch.Tensor:
    """Mean over the units of their clipped gradients, all parameters in one vector."""
    privacy = PrivacyConfig(name="dp_sgd", unit="image", physical_batch=16, test_seed=seed)
    offset = None
    if module.spec.stages.diffusion.loss == "balanced":
        offset = prior_offset(label_prior(units.labels, module.spec.num_classes, module.spec.task), module.spec.task)
    source = Source(module, units, privacy, "site", 1, "cpu", offset, store, "features")
    total = summed(module, source.chunks(source.members, Randomness(seed, "draws")), bound)
    return torch.cat([total[name].flatten() for name in sorted(total)]) / len(units)


def rows(final: FinalModel, units: Examples, kind: str, repeats: int) -> Iterator[tuple[int, float, float]]:
    """Draws, share of the bound along the reference, seconds a unit."""
    store = FeatureStore()  # encoders are frozen and the same in all of them
    direction = gradient(head(final, kind, REFERENCE), units, UNCLIPPED, 0, store)
    direction /= direction.norm()
    for draws in DRAWS:
        module = head(final, kind, draws)
        started = time.perf_counter()
        found = [float(gradient(module, units, 1.0, 1 + seed, store) @ direction) for seed in range(repeats)]
        yield draws, float(np.mean(found)), (time.perf_counter() - started) / repeats / len(units)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    final = load_final(options.run)
    with tempfile.TemporaryDirectory() as scratch:
        sites = build_sites(compose(options.run / "config.yaml", []), Path(scratch)).sites
        train = max((data.train for data in sites.values()), key=lambda examples: len(set(examples.labels.tolist())))
        units = train.subset(np.random.default_rng(0).permutation(len(train))[: options.units])
        columns = ("head", "draws", "share of C along the gradient", "over one draw", "time over one draw")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for kind in ("noise", "residual", "own"):
            first: tuple[float, float] | None = None
            for draws, share, seconds in rows(final, units, kind, options.repeats):
                first = first or (share, seconds)
                print(
                    f"| {kind} | {draws} | {share:.4f} | {share / first[0]:.2f} | {seconds / first[1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
