"""TensorBoard: what was written is read back; what is missing is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fed_diffmic.errors import ConfigError
from fed_diffmic.reporting.curves import metric_rows
from fed_diffmic.reporting.events import Event, EventLog
from fed_diffmic.reporting.tracking import make_trackers


def test_none_is_none(tmp_path: Path) -> None:
    assert make_trackers("none", tmp_path) == [] and not list(tmp_path.iterdir())


def test_scalars_come_back(tmp_path: Path, events: list[Event]) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tracking' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventLog(None, make_trackers("tensorboard", tmp_path)) as log:
        for event in events:
            log.emit(event["kind"], **{k: v for k, v in event.items() if k not in ("time", "elapsed", "kind")})
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    curve = [(s.step, s.value) for s in reader.Scalars("plain/federated/plain/val/auroc_macro")]
    wanted = [
        r for r in metric_rows(events) if (r.arm, r.metric, r.site) == ("plain/federated", "auroc_macro", "global")
    ]
    assert [step for step, _ in curve] == [r.round for r in wanted]
    assert [value for _, value in curve] == pytest.approx([r.value for r in wanted])
    assert "federated/guidance/train/loss/rosendahl" in reader.Tags()["scalars"]


def test_missing_package_and_unknown_kind_are_mendable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"fed-diffmic\[tracking\]"):
        make_trackers("tensorboard", tmp_path)
    with pytest.raises(ConfigError, match="run.tracking=mlflow"):
        make_trackers("mlflow", tmp_path)
