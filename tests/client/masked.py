"""What tests of masked sums at sites under rules read of the sites' logs, and how such sites are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import site as client_site
from client.masking import site_masking
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.exchange.audit import AuditLog, Line, read_lines
from fed_diffmic.exchange.masking.kept import KeptSum
from fed_diffmic.exchange.masking.virtual import virtual_key
from fed_diffmic.provision.keys import public_text
from fed_diffmic.provision.peers import Peer, _save
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from server.masked_figures import SummedFigures
from tests import site_rules, toy

NAMES = ("a", "b", "c", "d")
MASKED = StrategyConfig(secure_aggregation="masked")
STRICT = {"secure_aggregation": "required", "min_sites": 2}


def consortium(folder: Path, names: tuple[str, ...] = NAMES, **changes: Any) -> Any:
    """Sites under rules, each of which accepted all others; how the coordinator reaches them."""
    rules = {
        name: site_rules.rules(folder / "log", name, key=virtual_key(3, name), **{**STRICT, **changes})
        for name in names
    }
    grid, source = site_rules.ruled_grid(folder, rules)
    for name in names:
        accept(folder, name, *names)
    client_site.register_source(source, masking=lambda context, name: part(folder, name, rules[name]))
    return grid, rules


def part(folder: Path, name: str, rules: Any) -> Any:
    """As the worker makes it; for each request anew, as after a restart."""
    config = SiteConfig(SiteGroup(name=name, folder=str(folder / "sites" / name)), policy=rules.policy.config)
    return site_masking(config, virtual_key(3, name), rules.audit)(None, name)  # type: ignore[arg-type]


def accept(folder: Path, name: str, *others: str) -> None:
    keys = {n: public_text(virtual_key(3, n).public_key()) for n in others if n != name}
    _save(folder / "sites" / name, {n: Peer(n, key, "2026-01-01T00:00:00+00:00") for n, key in keys.items()})


def run(folder: Path, grid: Any, *, rounds: int = 1, strategy: StrategyConfig = MASKED, **settings: Any) -> Any:
    events, names = toy.Events([]), settings.pop("sites", list(NAMES))
    audit = AuditLog(folder / "coordinator.jsonl", site_rules.KEY, owner="coordinator")
    given = {"stages": ["guidance"], "sites": names, "poll_s": 0.001, "join_s": 120.0, "quorum": 0.75, **settings}
    spec = toy.toy_spec(rounds=rounds, strategy=strategy)
    store = CheckpointStore(folder / "run")
    return toy.federate(grid, spec, store, events, hooks=Hooks(audit=audit), **given), events


def log_of(folder: Path, name: str) -> list[Line]:
    return read_lines(folder / "log" / f"{name}.audit.jsonl")


def codes(folder: Path, name: str) -> set[int]:
    return {line.facts["code"] for line in log_of(folder, name) if line.kind == "refusal"}


def left(folder: Path, name: str) -> list[Line]:
    """Updates that left a site, masked or not."""
    return [line for line in log_of(folder, name) if line.facts.get("reply") == "train.reply"]


def ask_twice(monkeypatch: pytest.MonkeyPatch, question: str) -> list[Any]:
    """Have the coordinator ask for a sum of figures again, of other weights, when that of the first ones is open.

    Args:
        question: ``conform`` or ``assess``.

    Returns:
        The answers to what was asked again, as they come.
    """
    again: list[Any] = []
    real = getattr(SummedFigures, question)

    def twice(self: Any, request: Any) -> Any:
        first = real(self, request)
        moved = {name: value + np.asarray(1, value.dtype) for name, value in request.tensors.items()}
        with monkeypatch.context() as patch:
            patch.setattr(KeptSum, "resume", lambda *_: None)
            patch.setattr(KeptSum, "begin", lambda *_: 2)
            again.append(real(self, replace(request, tensors=moved, parcel=None)))
        return first

    monkeypatch.setattr(SummedFigures, question, twice)
    return again
