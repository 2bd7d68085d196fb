"""The run in a viewer: TensorBoard (extra ``tracking``) or MLflow (extra ``mlflow``), fed by the events of the run.

Nothing is sent anywhere: the files lie in the run's folder. Another viewer is one more class with ``__call__`` and
``close``, and one more line in :data:`TRACKERS`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import yaml

from fed_diffmic.config.text import flattened
from fed_diffmic.errors import ConfigError, MachineError
from fed_diffmic.reporting.curves import GLOBAL, Row, metric_rows
from fed_diffmic.reporting.events import Event

OF_RUN = "fed_diffmic.run"
LONGEST_VALUE = 6000  # characters of a parameter that MLflow keeps
MOST_AT_ONCE = 100  # parameters in one of its batches; of metrics it takes 1000


class Tracker(Protocol):
    """An observer of events that keeps something open until it is closed."""

    def __call__(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Flush and close."""


class _Context:
    """Which arm, trial and stage an event belongs to: those announced last."""

    def __init__(self) -> None:
        self._announced: list[Event] = []

    def rows(self, event: Event) -> list[Row]:
        """The numbers of one event; none of one that only announces."""
        if event["kind"] in ("arm_started", "trial_started", "stage_started"):
            again = ("arm_started", "trial_started") if event["kind"] == "arm_started" else (event["kind"],)
            self._announced = [e for e in self._announced if e["kind"] not in again] + [event]
            return []
        return metric_rows([*self._announced, event])


class TensorBoard:
    """Scalars ``ARM/STAGE/SPLIT/METRIC`` (``.../SITE`` for a site's own) by round, in the folder ``tensorboard``.

    Args:
        run_dir: the run's folder.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard", "tensorboard", "tracking") from error
        self._writer: Any = SummaryWriter(str(run_dir / "tensorboard"))
        self._context = _Context()

    def __call__(self, event: Event) -> None:
        """Write the numbers of one event."""
        for row in self._context.rows(event):
            rate = "" if row.lr_scale == 1 else f"lr-{row.lr_scale:g}"
            self._writer.add_scalar(_joined(row.arm, row.optimizer, rate, _name(row)), row.value, row.round)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


class MLflow:
    """One MLflow run for each arm and trial, in ``mlflow.db`` (SQLite; MLflow no longer keeps its store of files).

    Its metrics are ``STAGE/SPLIT/METRIC`` (``.../SITE`` for a site's own) by round, its parameters the run's settings.
    A run that is resumed goes on in the same MLflow runs. MLflow's own telemetry is off.

    Args:
        run_dir: the run's folder, with its ``config.yaml``.

    Raises:
        ConfigError: the package is not installed.
        MachineError: the file cannot be read or written.
    """

    def __init__(self, run_dir: Path) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when it is imported
        try:
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
            from sqlalchemy.exc import SQLAlchemyError
        except ImportError as error:
            raise _not_installed("mlflow", "mlflow-skinny", "mlflow") from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric: Any = Metric
        store = f"sqlite:///{(run_dir / 'mlflow.db').absolute()}"
        try:
            self._client: Any = MlflowClient(tracking_uri=store, registry_uri=store)
            self._experiment = self._experiment_of(run_dir)
        except (MlflowException, SQLAlchemyError) as error:
            raise MachineError(
                f"mlflow.db in {run_dir} cannot be read or written: {str(error).splitlines()[0]}",
                "Move it away, or go on with run.tracking=none.",
            ) from error
        settings = run_dir / "config.yaml"
        values = flattened(yaml.safe_load(settings.read_text(encoding="utf-8"))) if settings.exists() else {}
        self._settings = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in values.items()]
        self._context = _Context()
        self._runs: dict[str, str] = {}
        self._done = False

    def _experiment_of(self, run_dir: Path) -> str:
        """The id of the run's experiment: found, else made."""
        found = self._client.get_experiment_by_name(run_dir.name)
        artifacts = (run_dir / "mlflow").absolute().as_uri()  # else a folder where the command was called
        if found is None:
            return str(self._client.create_experiment(run_dir.name, artifact_location=artifacts))
        return str(found.experiment_id)

    def __call__(self, event: Event) -> None:
        """Write the numbers of one event."""
        self._done = self._done or event["kind"] == "run_done"
        numbers: dict[str, list[Any]] = {}
        now = int(datetime.fromisoformat(event["time"]).timestamp() * 1000)
        for row in self._context.rows(event):
            numbers.setdefault(_run_name(row), []).append(self._metric(_name(row), row.value, now, row.round or 0))
        for run, metrics in numbers.items():
            self._client.log_batch(self._run(run), metrics=metrics)

    def _run(self, name: str) -> str:
        """The MLflow run of an arm and trial: found again after a crash, else made."""
        if name not in self._runs:
            again = [run.info.run_id for run in self._all() if run.data.tags.get(OF_RUN) == name]
            if again:
                self._client.update_run(again[0], status="RUNNING")
                self._runs[name] = again[0]
            else:
                made = self._client.create_run(self._experiment, run_name=name, tags={OF_RUN: name})
                self._runs[name] = made.info.run_id
                for start in range(0, len(self._settings), MOST_AT_ONCE):
                    self._client.log_batch(made.info.run_id, params=self._settings[start : start + MOST_AT_ONCE])
        return self._runs[name]

    def _all(self) -> list[Any]:
        return list(self._client.search_runs([self._experiment]))

    def close(self) -> None:
        """Mark the MLflow runs as finished; those of this process as killed where the run did not end."""
        ended = [run.info.run_id for run in self._all()] if self._done else list(self._runs.values())
        for run in ended:
            self._client.set_terminated(run, status="FINISHED" if self._done else "KILLED")


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def make_trackers(kind: str, run_dir: Path) -> list[Tracker]:
    """The observers that ``run.tracking`` asks for.

    Args:
        kind: ``none``, or a key of :data:`TRACKERS`.
        run_dir: the run's folder.

    Raises:
        ConfigError: another kind, or its package is not installed.
    """
    if kind == "none":
        return []
    if kind not in TRACKERS:
        raise ConfigError("run.tracking", kind, ", ".join(("none", *TRACKERS)))
    return [TRACKERS[kind](run_dir)]


def _name(row: Row) -> str:
    return _joined(row.stage, row.split, row.metric, "" if row.site == GLOBAL else row.site)


def _run_name(row: Row) -> str:
    """The arm, and in what it differs from the settings as they are."""
    rate = "" if row.lr_scale == 1 else f"learning rate x {row.lr_scale:g}"
    differs = ", ".join(part for part in (row.optimizer, rate) if part)
    return f"{row.arm} ({differs})" if differs else row.arm


def _joined(*names: str) -> str:
    return "/".join(name for name in names if name)


def _not_installed(kind: str, package: str, extra: str) -> ConfigError:
    return ConfigError(
        "run.tracking",
        kind,
        f"none, unless the package {package} is installed",
        f"Install it: pip install 'fed-diffmic[{extra}]'.",
    )
