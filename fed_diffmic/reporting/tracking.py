"""The run in a viewer: TensorBoard (extra ``tracking``), fed by the same events as everything else.

Nothing is sent anywhere: the files lie in the run's folder. Another viewer is one more class with ``__call__`` and
``close``, and one more line in :func:`make_trackers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from fed_diffmic.errors import ConfigError
from fed_diffmic.reporting.curves import GLOBAL, metric_rows
from fed_diffmic.reporting.events import Event


class Tracker(Protocol):
    """An observer of events that keeps something open until it is closed."""

    def __call__(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Scalars ``ARM/STAGE/SPLIT/METRIC`` (``.../SITE`` for a site's own) by round.

    Args:
        folder: where the viewer's files go.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "run.tracking",
                "tensorboard",
                "none, unless the package tensorboard is installed",
                "Install it: pip install 'fed-diffmic[tracking]'.",
            ) from error
        self._writer: Any = SummaryWriter(str(folder))
        self._context: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Write the numbers of one event."""
        if event["kind"] in ("arm_started", "trial_started", "stage_started"):
            # Later events belong to the arm, trial and stage announced last.
            again = ("arm_started", "trial_started") if event["kind"] == "arm_started" else (event["kind"],)
            self._context = [e for e in self._context if e["kind"] not in again] + [event]
            return
        for row in metric_rows([*self._context, event]):
            trial = "" if row.lr_scale == 1 else f"lr-{row.lr_scale:g}"
            names = [row.arm, trial, row.stage, row.split, row.metric, "" if row.site == GLOBAL else row.site]
            self._writer.add_scalar("/".join(name for name in names if name), row.value, row.round)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


def make_trackers(kind: str, run_dir: Path) -> list[Tracker]:
    """The observers that ``run.tracking`` asks for.

    Args:
        kind: ``none`` or ``tensorboard``.
        run_dir: the run's folder; files go to ``run_dir/tensorboard``.

    Raises:
        ConfigError: another kind, or its package is not installed.
    """
    if kind == "none":
        return []
    if kind == "tensorboard":
        return [TensorBoard(run_dir / "tensorboard")]
    raise ConfigError("run.tracking", kind, "none, tensorboard")
