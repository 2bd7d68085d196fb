"""TensorBoard and MLflow: what was written is read back; what is missing is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from fed_diffmic.errors import ConfigError, MachineError
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


def write(run_dir: Path, events: list[Event]) -> None:
    with EventLog(None, make_trackers("mlflow", run_dir)) as log:
        for event in events:
            log.emit(event["kind"], **{k: v for k, v in event.items() if k not in ("time", "elapsed", "kind")})


def test_mlflow_has_a_run_for_each_arm_and_a_resumed_run_goes_on_in_them(tmp_path: Path, events: list[Event]) -> None:
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    run_dir = tmp_path / "ham"
    run_dir.mkdir()
    settings = {f"setting_{i}": i for i in range(150)} | {
        "strategy": {"name": "fedprox", "mu": 0.1},
        "long": "x" * 9000,
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    half = len(events) // 2
    write(run_dir, events[:half])
    from mlflow.telemetry import get_telemetry_client
    from mlflow.tracking import MlflowClient

    assert get_telemetry_client() is None  # it would send what is done here to its makers
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'ham'")
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"KILLED"}
    write(run_dir, [*(e for e in events[:half] if e["kind"].endswith("_started")), *events[half:]])
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    rows = metric_rows(events)
    assert {(r.arm, r.lr_scale) for r in rows} == {
        (name.split(" (")[0], float(name.split(" x ")[1][:-1]) if " x " in name else 1.0) for name in runs
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    plain = runs["plain/federated"]
    curve = client.get_metric_history(plain.info.run_id, "plain/val/auroc_macro")
    wanted = [r for r in rows if (r.arm, r.metric, r.site) == ("plain/federated", "auroc_macro", "global")]
    assert [(m.step, m.value) for m in curve] == [(r.round, r.value) for r in wanted] and wanted
    assert "guidance/train/loss/rosendahl" in runs["federated"].data.metrics
    given = plain.data.params
    assert given["strategy.mu"] == "0.1" and given["setting_149"] == "149" and given["long"] == "x" * 6000
    # Neither a folder of its artifacts nor anything where the command was called.
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.yaml", "mlflow.db"]


def test_a_database_that_is_none_is_mendable(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(MachineError, match=r"(?s)mlflow\.db in .* is not a database.* Move it away"):
        make_trackers("mlflow", tmp_path)


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [("tensorboard", "torch.utils.tensorboard", "tracking"), ("mlflow", "mlflow.tracking", "mlflow")],
)
def test_a_missing_package_is_mendable(
    kind: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"fed-diffmic\[{extra}\]"):
        make_trackers(kind, tmp_path)


def test_an_unknown_kind_is_mendable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run.tracking=wandb"):
        make_trackers("wandb", tmp_path)
