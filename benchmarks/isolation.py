"""How far honest weights stay from the bounds of the isolation test, from the first step until all images are learnt.

``python -m benchmarks.isolation [--model tiny] [--set model.KEY=VALUE ...] [--stage guidance] [--rounds 10]``: rounds
of the model's own stage settings on 64 phantoms of four classes, one site, no averaging; before each round the metrics
that a site would have measured, the worst over three choices of images. A refusal here would be an honest run's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.compose import compose
from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.privacy.inversion.subject import make_subject
from fed_diffmic.privacy.isolation import Isolation, measure_isolation
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stages import build_module, load_state
from fed_diffmic.training.update import LocalRound

IMAGES, CHOICES = 64, 3


def worst(found: list[Isolation]) -> str:
    """The least comfortable metrics of several measurements, and how many were refusals."""
    effective, label = min(f.effective for f in found), min(f.label for f in found)
    own, refused = max(f.own_rows for f in found), sum(f.found for f in found)
    return f"{effective:9.2f} {own:9.2f} {label:9.1e} {refused:8d}"


def main() -> None:
    """Train, and print a line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--stage", default="guidance", choices=("guidance", "plain", "diffusion"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lr", type=float)
    options = parser.parse_args()
    config = compose(None, [f"model={options.model}", f"stages={options.model}", *options.set])
    subject = make_subject(config, stage="guidance", batch=IMAGES)
    cfg: StageConfig = getattr(config.stages, options.stage)
    cfg = replace(cfg, rounds=options.rounds, lr=options.lr or cfg.lr, batch_size=min(cfg.batch_size, 16))
    spec = replace(subject.spec, stages=replace(subject.spec.stages, **{options.stage: cfg}))
    module = build_module(spec, options.stage)
    kept = {name: value for name, value in subject.start.items() if name in module.network.state_dict()}
    if options.stage == "guidance":
        load_state(module.network, kept)
    print(f"{'round':>5} {'loss':>8} {'effective':>9} {'own rows':>9} {'label':>9} refusals")
    loss = float("nan")
    for index in range(1, options.rounds + 1):
        found = [measure_isolation(module, subject.site, "cpu", np.random.default_rng(c)) for c in range(CHOICES)]
        print(f"{index:5d} {loss:8.4f} {worst(found)}", flush=True)
        result = local_update(module, subject.site, build_algorithm(spec.strategy), LocalRound("a", index))
        loss = result.metrics["loss"]
    found = [measure_isolation(module, subject.site, "cpu", np.random.default_rng(c)) for c in range(CHOICES)]
    print(f"{'end':>5} {loss:8.4f} {worst(found)}")


if __name__ == "__main__":
    main()
