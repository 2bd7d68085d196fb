"""The ServerApp reads a flat run configuration and leaves a run's folder behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.app import app as site_app
from fed_diffmic.config.compose import compose, to_json
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import ConfigError, RoundError
from fed_diffmic.exchange.audit import AuditLog, read_lines
from fed_diffmic.release.final import load_final
from fed_diffmic.reporting.events import EventLog, read_events
from server.app import app, shared_events
from server.hooks import Hooks
from server.labels import agreed_labels, wait_for_nodes
from simulations.flower_app import VirtualClientApp
from simulations.grid import InProcessGrid, run_in_process
from tests import toy


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def toy_config() -> SimulateConfig:
    return replace(compose(None, []), stages=toy.toy_spec().stages)


def nodes(folder: Path) -> list[dict[str, Any]]:
    toy.toy_grid(folder)  # registers the source
    return [{"site": name, "site-dir": str(folder / "sites" / name)} for name in ("a", "b")]


def test_a_run_described_by_flat_values(tmp_path: Path) -> None:
    run_config = {
        "config-json": to_json(toy_config()),
        "spec-json": toy.toy_spec().to_json(),
        "stages": "guidance,plain",
        "sites": "a|b",
        "run-dir": str(tmp_path / "run"),
        "folder": str(tmp_path / "run" / "arms" / "x"),
    }
    run_in_process(app, site_app, nodes(tmp_path), run_config)
    final = load_final(tmp_path / "run" / "arms" / "x")
    assert set(final.states) == {"guidance", "plain"}
    assert final.spec == toy.toy_spec()
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert [e["round"] for e in events if e["kind"] == "round_done"] == [1, 2, 1, 2]


def test_it_writes_to_a_log_that_is_open_already(tmp_path: Path) -> None:
    run_config = {
        "config-json": to_json(toy_config()),
        "spec-json": toy.toy_spec().to_json(),
        "stages": "guidance",
        "run-dir": str(tmp_path / "run"),
        "sites": "a|b",
    }
    seen: list[str] = []
    with EventLog(None, observers=[lambda event: seen.append(event["kind"])]) as log, shared_events(log):
        run_in_process(app, site_app, nodes(tmp_path), run_config)
    assert "round_done" in seen
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_classes_that_nobody_configured_come_from_the_sites(tmp_path: Path) -> None:
    config = toy_config()
    config = replace(config, stages=replace(config.stages, diffusion=replace(config.stages.diffusion, rounds=0)))
    source = toy.ToySource({"a": toy.toy_site("a", 1), "b": toy.toy_site("b", 2)})
    run_config = {"config-json": to_json(config), "run-dir": str(tmp_path / "run")}
    virtual = VirtualClientApp([{"site": "a"}, {"site": "b"}], run_config, source)
    run_in_process(app, virtual, [{"partition-id": 0}, {"partition-id": 1}], run_config)
    final = load_final(tmp_path / "run")
    assert (final.spec.classes, final.spec.task, final.spec.run_id) == (toy.CLASSES, "multiclass", "run")
    assert set(final.states) == {"guidance"}


def test_a_wrong_configuration_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    run_config = {"overrides": "stages.guidance.rounds=-1", "run-dir": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"stages\.guidance\.rounds"):
        run_in_process(app, site_app, [], run_config)


def test_sites_with_unlike_classes_are_refused(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path)
    source.sites["b"] = replace(source.sites["b"], classes=("other", "benign", "malignant"))
    with pytest.raises(RoundError, match="2 different lists of classes"):
        agreed_labels(grid, toy.Events([]), run="x", nodes=2, deadline=1e12)


def test_waiting_for_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("server.labels.time.monotonic", lambda: now[0])
    monkeypatch.setattr("server.labels.time.sleep", lambda s: now.__setitem__(0, now[0] + max(s, 0.01)))
    empty, two = InProcessGrid(site_app, []), InProcessGrid(site_app, [{}, {}])
    with pytest.raises(RoundError, match="no site is connected"):
        wait_for_nodes(empty, None, 30.0, 0.1)
    assert now[0] >= 30.0
    assert wait_for_nodes(two, None, 100.0, 0.1) == [1, 2]
    assert wait_for_nodes(two, 2, 100.0, 0.1) == [1, 2]
    assert wait_for_nodes(two, 3, 200.0, 0.1) == [1, 2]  # fewer came: the caller says who is missing
    assert now[0] >= 200.0


def test_a_question_for_labels_is_in_the_coordinators_log_too(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    hooks = Hooks(audit=AuditLog(tmp_path / "audit.jsonl", key, owner="coordinator"))
    grid, _ = toy.toy_grid(tmp_path)
    agreed = agreed_labels(grid, toy.Events([]), run="x", nodes=2, deadline=1e12, hooks=hooks)
    assert agreed == (toy.CLASSES, "multiclass")
    kinds = [line.kind for line in read_lines(tmp_path / "audit.jsonl")]
    assert kinds == ["opened", "request", "request", "reply", "reply"]
