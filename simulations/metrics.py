"""Metrics of trained arms on the sites' images: what the summary, the report and the table show.

A researcher's machine holds every virtual site's images, so global metrics here are those of the
union of predictions. Test images are read once, when every arm has been trained and chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.release.final import FinalModel
from fed_diffmic.training.comparison import difference, mean_over_sites
from fed_diffmic.training.evaluation import metrics_of
from fed_diffmic.training.matrix import matrix_cell
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.subgroups import Subgroups, subgroup_metrics
from fed_diffmic.training.sureness import Sureness

SPLITS = ("val", "test")
MOST_MODELS = 16


class Judge(Protocol):
    """A model with its calibration: what metrics are computed of."""

    @property
    def spec(self) -> RunSpec:
        """What it was trained as."""

    def predict(self, examples: Examples) -> Scored:
        """Calibrated probabilities and decisions, at least one example."""


def join(parts: Sequence[Scored]) -> Scored:
    """The union of several sites' predictions, in the order given."""
    return Scored(
        probabilities=np.concatenate([p.probabilities for p in parts]),
        decided=np.concatenate([p.decided for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        groups=np.concatenate([p.groups for p in parts]),
        task=parts[0].task,
    )


@dataclass(frozen=True)
class MethodResult:
    """Metrics of one method, and the test predictions behind them.

    Attributes:
        metrics: ``global``, ``sites`` and ``mean``, each by split.
        test: predictions on the test images, by site.
    """

    metrics: dict[str, Any]
    test: dict[str, Scored]


def method_result(predictors: Mapping[str, Judge], sites: Mapping[str, SiteData], bootstrap: int) -> MethodResult:
    """Metrics of one method at every site, over their union, and the mean over sites.

    Args:
        predictors: the model that each site would use, by site name.
        sites: their data.
        bootstrap: resamples for test metrics (validation metrics carry no interval).
    """
    spec = next(iter(predictors.values())).spec
    result: dict[str, Any] = {"sites": {name: {} for name in sites}, "global": {}, "mean": {}}
    test: dict[str, Scored] = {}
    for split in SPLITS:
        parts = {name: predictors[name].predict(getattr(data, split)) for name, data in sites.items()}
        draws = bootstrap if split == "test" else 0
        for name, part in parts.items():
            result["sites"][name][split] = metrics_of(part, spec, draws)
        result["global"][split] = metrics_of(join(list(parts.values())), spec, draws)
        result["mean"][split] = mean_over_sites(parts, bootstrap=draws, seed=spec.seed)
        test = parts
    return MethodResult(result, test)


@dataclass(frozen=True)
class Row:
    """One model's test predictions at every site.

    Attributes:
        spec: what it was trained as.
        parts: predictions by site.
        sureness: its prediction sets and test of uncertainty; none: it has none.
    """

    spec: RunSpec
    parts: dict[str, Scored]
    sureness: Sureness | None = None


def models_of(methods: Mapping[str, Mapping[str, Judge]], most: int | None = None) -> Iterator[tuple[str, str, Judge]]:
    """Row name, the site that would use it, and the model: one row where a method's sites share a model.

    A method that has a model for each site (training alone, personal models) is a row ``<method>/<site>`` for each,
    unless there are more than ``most`` sites (:data:`MOST_MODELS`).
    """
    for method, predictors in methods.items():
        alike = len({id(predictor) for predictor in predictors.values()}) == 1
        if not alike and len(predictors) > (MOST_MODELS if most is None else most):
            continue
        for place, predictor in [next(iter(predictors.items()))] if alike else predictors.items():
            yield (method if alike else f"{method}/{place}"), place, predictor


def everywhere(
    methods: Mapping[str, Mapping[str, Judge]], results: Mapping[str, MethodResult], sites: Mapping[str, SiteData]
) -> dict[str, Row]:
    """Test predictions of every model at every site, by row (:func:`models_of`)."""
    rows = {}
    for model, place, predictor in models_of(methods):
        alike = model in methods
        own = results[model if alike else model.removesuffix(f"/{place}")].test
        parts = {
            name: own[name] if alike or name == place else predictor.predict(data.test) for name, data in sites.items()
        }
        rows[model] = Row(predictor.spec, parts, getattr(predictor, "sureness", None))
    return rows


def cross_site(rows: Mapping[str, Row], bootstrap: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The metrics of :func:`everywhere`, and those on all sites' test images together (``all``).

    Returns:
        model -> site -> :func:`fed_diffmic.training.matrix.matrix_cell`.
    """
    matrix: dict[str, dict[str, dict[str, Any]]] = {}
    for model, row in rows.items():
        parts = {**row.parts, "all": join(list(row.parts.values()))} if len(row.parts) > 1 else row.parts
        spec = row.spec
        matrix[model] = {
            name: matrix_cell(part, spec.classes, bootstrap=bootstrap, seed=spec.seed, name=name, sureness=row.sureness)
            for name, part in parts.items()
        }
    return matrix


def subgroups(
    result: MethodResult, sites: Mapping[str, SiteData], final: FinalModel, stage: str, bootstrap: int
) -> dict[str, Subgroups]:
    """Metrics of a method for each subgroup of the sites' test images, and of all of them together (``all``).

    Empty where no site's table says anything of subgroups (``dataset.subgroups``).
    """
    told = {name: texts for name, data in sites.items() if (texts := data.test.subgroups) is not None}
    if not told:
        return {}
    parts = {name: (result.test[name], texts) for name, texts in told.items()}
    if len(parts) > 1:
        whole = join([scored for scored, _ in parts.values()])
        parts["all"] = (whole, np.concatenate(list(told.values())))
    spec = final.spec
    return {
        name: subgroup_metrics(
            scored, texts, spec.classes, bootstrap=bootstrap, seed=spec.seed, sureness=final.sureness.get(stage)
        )
        for name, (scored, texts) in parts.items()
    }


def differences(own: MethodResult, others: Mapping[str, MethodResult], bootstrap: int, seed: int) -> dict[str, Any]:
    """Paired difference of the federation minus each other method, on the same test images."""
    return {name: difference(own.test, other.test, bootstrap=bootstrap, seed=seed) for name, other in others.items()}


def prediction_tensors(results: Mapping[str, MethodResult], sites: Mapping[str, SiteData]) -> dict[str, np.ndarray]:
    """Test predictions for comparisons over folds, seeds and runs.

    ``<method>|<site>|probabilities`` and ``|decided``; ``<site>|labels``, ``<site>|keys`` (each image's number from its
    content, as in ``partition.csv``) and ``<site>|groups``, where groups are numbered by site and nothing tells which
    patient a number is.
    """
    tensors = {f"{site}|keys": data.test.keys.astype(np.int64) for site, data in sites.items()}
    for method, result in results.items():
        for site, scored in result.test.items():
            tensors[f"{method}|{site}|probabilities"] = scored.probabilities.astype(np.float32)
            tensors[f"{method}|{site}|decided"] = scored.decided
            tensors[f"{site}|labels"] = scored.labels
            tensors[f"{site}|groups"] = np.unique(scored.groups, return_inverse=True)[1].astype(np.int64)
    return tensors
