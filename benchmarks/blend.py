"""What blending the sampler with its guidance network buys: one run's final model, calibrated in three ways.

``python benchmarks/blend.py [--start own|shared] RUN_DIR [RUN_DIR ...]``: for each run the diffusion stage's model is
scored once on every site's validation and test images; the calibration is fitted on the validation sums to the
sampler's scores alone, to the guidance network's logits alone, and to both (``stages.diffusion.blend``). Printed are
the share fitted, the validation loss, and the means over sites of balanced accuracy and macro AUROC on test images,
and their means over the runs. The weights are the same in all three; the round was chosen as the run's configuration
says.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from fed_diffmic.config.compose import compose
from fed_diffmic.release.final import load_final
from fed_diffmic.training import calibration
from fed_diffmic.training.comparison import mean_over_sites
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.stages import build_module, load_state
from simulations.sites import build_sites

METRICS = ("balanced_accuracy", "auroc_macro")
WAYS = {"sampler alone": slice(0, 1), "guidance network alone": slice(1, 2), "both": slice(0, 2)}


def measure(folder: Path, start: str | None) -> dict[str, tuple[float, float, dict[str, float]]]:
    """Share of the guidance network, validation loss in nats, and test metrics, for each way."""
    final = load_final(folder)
    with tempfile.TemporaryDirectory() as scratch:
        sites = build_sites(compose(folder / "config.yaml", []), Path(scratch)).sites
    stages = replace(final.spec.stages, diffusion=replace(final.spec.stages.diffusion, blend=True))
    model = replace(final.spec.model, sampling_start=start or final.spec.model.sampling_start)
    spec = replace(final.spec, stages=stages, model=model)
    module = build_module(spec, "diffusion")
    load_state(module.network, final.states["diffusion"])
    scores = {
        (name, split): predict_scores(module, getattr(data, split))
        for name, data in sites.items()
        for split in ("val", "test")
    }
    prior = np.asarray(final.calibration["diffusion"].prior)
    images = sum(len(data.val) for data in sites.values())
    found = {}
    for way, part in WAYS.items():
        seen = {key: value[:, part] if way == "both" else value[:, part][:, 0] for key, value in scores.items()}
        sums = [
            calibration.nll_sums(seen[name, "val"], data.val.labels, prior, spec.task) for name, data in sites.items()
        ]
        fitted = calibration.choose(np.sum(sums, axis=0), images, prior, spec.task, blended=way == "both")
        scored = {}
        for name, data in sites.items():
            p = calibration.probabilities(seen[name, "test"], fitted)
            decided = calibration.decide(p, fitted, spec.stages.decision)
            scored[name] = Scored(p, decided, data.test.labels, data.test.groups, spec.task)
        means = mean_over_sites(scored, bootstrap=0, seed=spec.seed)
        assert fitted.nll is not None
        found[way] = (fitted.blend, fitted.nll, {metric: means[metric]["value"] for metric in METRICS})
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--start", choices=("own", "shared"), help="model.sampling_start, if not the run's own")
    options = parser.parse_args()
    runs = [measure(folder, options.start) for folder in options.runs]
    print("| calibrated | share of the guidance network | validation loss | balanced accuracy | macro AUROC |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        rows = [run[way] for run in runs]
        columns = [[row[1] for row in rows], *([row[2][metric] for row in rows] for metric in METRICS)]
        each = [f"{np.mean(column):.3f} ({', '.join(f'{x:.3f}' for x in column)})" for column in columns]
        shares = ", ".join(f"{row[0]:g}" for row in rows) if way == "both" else ""
        print(f"| {way} | {shares} | {' | '.join(each)} |")


if __name__ == "__main__":
    main()
