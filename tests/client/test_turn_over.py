"""A SuperNode that ends gives its turn to another site of the machine: its worker does not compute on beside it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from client import supervisor
from client.start import STATE
from fed_diffmic.config.site import SiteConfig, SiteGroup


@pytest.mark.parametrize(
    ("turn", "state", "moves", "ended"),
    [
        ("turn", "working", True, True),
        ("turn", "working", False, True),
        ("turn", "ready", True, False),
        ("turn", None, True, False),
        (None, "working", True, False),
    ],
)
def test_a_worker_computes_no_longer_than_its_turn(
    turn: str | None, state: str | None, moves: bool, ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("site", "site/run", "site/logs"):
        (tmp_path / folder).mkdir(mode=0o700)
    if state is not None:
        (tmp_path / "site/run" / STATE).write_text(json.dumps({"pid": 1, "state": state, "since": 0.0}))
    group = SiteGroup(name="a", folder=str(tmp_path / "site"), turn=turn and str(tmp_path / turn))
    config = SiteConfig(site=group)
    config = replace(config, coordinator=replace(config.coordinator, insecure=True))
    site = supervisor._Site(config, tmp_path / "site")
    said: list[str] = []
    child = SimpleNamespace(pid=7, poll=lambda: 1 if moves else None, kill=lambda: None)
    site.node.child = child  # type: ignore[assignment]
    monkeypatch.setattr(site.worker, "step", lambda now: False)
    monkeypatch.setattr(site.worker, "end", lambda why, grace_s: said.append(why))
    monkeypatch.setattr(site.housekeeping, "step", lambda now: None)
    if not moves:  # it hangs: it has not said for long that it lives
        stale = SimpleNamespace(
            pid=7, contact=0.0, problem="", connected=True, dropped=0, why="", alive=0.0, worker=0.0, port=1
        )
        monkeypatch.setattr(supervisor, "read_contact", lambda run: stale)
    site.step(time.time())
    assert site.node.child is None and not site.connected
    assert bool(said) is ended
