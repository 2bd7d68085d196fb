"""Metrics of a finished model on any table of images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fed_diffmic.config.compose import compose
from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.open import cache_folder, open_table
from fed_diffmic.data.site import Examples
from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.inference.predictor import NOTICE, Predictor
from fed_diffmic.training.evaluation import metrics_of
from fed_diffmic.training.metrics import METRICS, PER_CLASS

TAKEN = ("dataset.cache_dir", "dataset.on_bad_image")
"""The settings of an evaluation; all others are the model's own."""


@dataclass(frozen=True)
class TableSettings:
    """How a table is read.

    Attributes:
        cache_dir: folder for decoded copies of the images; none: the default.
        on_bad_image: ``error`` or ``skip``.
    """

    cache_dir: str | None = None
    on_bad_image: str = "error"

    @property
    def folder(self) -> Path:
        """Where decoded copies go."""
        return cache_folder(DatasetConfig(cache_dir=self.cache_dir))


def table_settings(run_dir: Path, overrides: Sequence[str] = ()) -> TableSettings:
    """The settings given, and the run's own folder for decoded images where none is given.

    Args:
        run_dir: its ``config.yaml`` may name ``dataset.cache_dir``; a coordinator's run, or a model that a site took
            over, names none.
        overrides: ``key=value``, keys of :data:`TAKEN`.

    Raises:
        UsageError, ConfigError: another key, or a value that is not allowed.
        ModelFileError: the run's configuration cannot be read.
    """
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if key not in TAKEN or "=" not in override:
            raise UsageError(
                f"cannot use {override!r} with a finished model: its classes, task and image side are its own",
                f"The settings here are {' and '.join(f'{name}=...' for name in TAKEN)}.",
            )
    given = compose(None, overrides).dataset
    cache_dir = given.cache_dir if TAKEN[0] in keys else _cache_of(Path(run_dir) / "config.yaml")
    return TableSettings(cache_dir, given.on_bad_image)


def _cache_of(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelFileError(
            f"{path} cannot be read: {type(error).__name__}",
            "Restore it from the backup, or give dataset.cache_dir=...",
        ) from error
    dataset = value.get("dataset") if isinstance(value, dict) else None
    named = dataset.get("cache_dir") if isinstance(dataset, dict) else None
    return named if isinstance(named, str) and named else None


def read_examples(spec: RunSpec, manifest_file: Path, settings: TableSettings) -> tuple[Examples, list[str]]:
    """A table's images as a model's run would read them, and what was found in the data and handled.

    Raises:
        DataError: what is wrong with the table.
        MachineError: no space, no permission.
    """
    opened = open_table(
        manifest_file,
        spec.classes,
        spec.task,
        spec.model.image_side,
        settings.folder,
        on_bad_image=settings.on_bad_image,
    )
    return Examples.from_manifest(opened.manifest, opened.cache), [str(finding) for finding in opened.findings]


def evaluate_table(
    predictor: Predictor, manifest_file: Path, settings: TableSettings, *, bootstrap: int = 1000
) -> dict[str, Any]:
    """Metrics of a model on every image of a table.

    Args:
        manifest_file: ``image,label[,patient_id,...]``, image paths relative to it, labels by name.
        settings: from :func:`table_settings`.
        bootstrap: resamples of groups.

    Returns:
        ``n``, ``notes`` (what was found in the data and handled), ``metrics``
        (:func:`fed_diffmic.training.metrics.compute_metrics`), ``notice``.

    Raises:
        DataError: what is wrong with the table.
        MachineError: no space, no permission.
    """
    examples, notes = read_examples(predictor.spec, manifest_file, settings)
    return {
        "n": len(examples),
        "notes": notes,
        "figures": metrics_of(predictor.predict(examples), predictor.spec, bootstrap),
        "notice": NOTICE,
    }


def metrics_csv(metrics: dict[str, Any]) -> str:
    """``figure,class,value,low,high,n``: the metrics over all classes (``class`` empty), then those of each class."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["figure", "class", "value", "low", "high", "n"])
    for metric in METRICS:
        cell = metrics[metric]
        writer.writerow([metric, "", *_cells(cell["value"], cell["low"], cell["high"]), cell["n"]])
    for name, cell in metrics["per_class"].items():
        for metric in PER_CLASS:
            low, high = cell["intervals"].get(metric) or (None, None)
            writer.writerow([metric, name, *_cells(cell[metric], low, high), cell["n"]])
    return stream.getvalue()


def _cells(*values: float | None) -> list[str]:
    """Each number as it is; nothing where it is not defined."""
    return ["" if value is None else repr(float(value)) for value in values]
