"""Figures of trained arms on the sites' images: what the summary, the report and the table show.

A researcher's machine holds every virtual site's images, so global figures here are those of the
union of predictions. Test images are read once, when every arm has been trained and chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fed_diffmic.algorithms import Tensors
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.spec import RunSpec
from fed_diffmic.training import calibration
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.metrics import METRICS, figures
from fed_diffmic.training.stages import build_module, load_state

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Predictions:
    """Probabilities and decisions on a set of examples.

    Attributes:
        probabilities: ``(N, C)`` calibrated.
        decided: ``(N,)`` class indices, or ``(N, C)`` bool for multi-label.
        labels, groups: of the examples.
    """

    probabilities: np.ndarray
    decided: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @staticmethod
    def join(parts: Sequence[Predictions]) -> Predictions:
        """The union of several sites' predictions, in the order given."""
        return Predictions(
            *(np.concatenate([getattr(p, f) for p in parts]) for f in ("probabilities", "decided", "labels", "groups"))
        )


class Predictor:
    """A trained stage with its calibration.

    Args:
        spec: of the arm.
        stage: ``guidance``, ``diffusion`` or ``plain``.
        state: its full state.
        fitted: its calibration.
        device: where to compute.
    """

    def __init__(self, spec: RunSpec, stage: str, state: Tensors, fitted: Calibration, device: str = "cpu") -> None:
        self.spec = spec
        self.fitted = fitted
        self.device = device
        self.module = build_module(spec, stage)
        load_state(self.module.network, state, f"stage {stage}")

    def predict(self, examples: Examples) -> Predictions:
        """Calibrated probabilities and the decisions of the run's rule (``stages.decision``)."""
        scores = predict_scores(self.module, examples, torch.device(self.device))
        probabilities = calibration.probabilities(scores, self.fitted)
        decided = calibration.decide(probabilities, self.fitted, self.spec.stages.decision)
        return Predictions(probabilities, decided, examples.labels, examples.groups)


def figures_of(predictions: Predictions, spec: RunSpec, bootstrap: int) -> dict[str, Any]:
    """:func:`fed_diffmic.training.metrics.figures` with the run's task, classes and seed."""
    return figures(
        predictions.probabilities,
        predictions.decided,
        predictions.labels,
        predictions.groups,
        task=spec.task,
        classes=spec.classes,
        bootstrap=bootstrap,
        seed=spec.seed,
    )


def method_figures(
    predictors: Mapping[str, Predictor], sites: Mapping[str, SiteData], bootstrap: int
) -> dict[str, Any]:
    """Figures of one method at every site, over their union, and the mean over sites.

    Args:
        predictors: the model that each site would use, by site name.
        sites: their data.
        bootstrap: resamples for test figures (validation figures carry no interval).
    """
    result: dict[str, Any] = {"sites": {name: {} for name in sites}, "global": {}, "mean": {}}
    for split in SPLITS:
        parts = {name: predictors[name].predict(getattr(data, split)) for name, data in sites.items()}
        spec = next(iter(predictors.values())).spec
        draws = bootstrap if split == "test" else 0
        for name, part in parts.items():
            result["sites"][name][split] = figures_of(part, spec, draws)
        result["global"][split] = figures_of(Predictions.join(list(parts.values())), spec, draws)
        result["mean"][split] = {
            metric: mean_over_sites([result["sites"][name][split][metric]["value"] for name in sites])
            for metric in METRICS
        }
    return result


def mean_over_sites(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean over the sites where the figure is defined, and how many those are."""
    defined = [v for v in values if v is not None]
    return {"value": float(np.mean(defined)) if defined else None, "sites": len(defined)}
