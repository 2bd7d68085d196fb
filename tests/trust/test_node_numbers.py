"""Flower's numbers of the nodes stand in no log that sites are shown: who knows one may send that site messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.exchange.audit import AuditLog, read_lines
from fed_diffmic.exchange.audit_compare import compare
from fed_diffmic.exchange.failures import PAUSED, SiteError
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from server.labels import agreed_labels
from tests import site_rules, toy

FIRST = 7_311_904_000_000_000_000  # numbers as long as Flower's, so that none is in a digest by chance
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.parametrize("roster", [True, False])
def test_no_log_or_event_names_a_node(tmp_path: Path, roster: bool) -> None:
    said = iter([True])

    def gate(kind: str) -> None:
        if kind == "query" and next(said, False):  # the first answer is a refusal: so a failure is told of a node too
            raise SiteError(PAUSED)

    ruled = {"a": site_rules.rules(tmp_path, "a", gate), "b": site_rules.rules(tmp_path, "b")}
    grid, _ = site_rules.ruled_grid(tmp_path, ruled)
    grid._contexts = {FIRST + node: context for node, context in grid._contexts.items()}
    numbers = {node: str(context.node_config["site"]) for node, context in grid._contexts.items()}
    audit, events = AuditLog(tmp_path / "audit.jsonl", KEY, owner="coordinator"), toy.Events([])
    hooks = Hooks(names_of_nodes=(lambda: numbers) if roster else None, audit=audit, signer=KEY)
    agreed_labels(grid, events, run="toy", nodes=2, deadline=1e12, poll_s=0.001, hooks=hooks)
    given: dict[str, Any] = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 5.0}
    toy.federate(grid, toy.toy_spec(), CheckpointStore(tmp_path / "run"), events, hooks=hooks, **given)
    logged = (tmp_path / "audit.jsonl").read_text() + json.dumps(events.log)
    assert '"site_failed"' in logged
    for number in numbers:
        assert str(number) not in logged
    sites = [line.facts for line in read_lines(tmp_path / "audit.jsonl") if line.kind == "site"]
    assert {facts["site"] for facts in sites} == {"a", "b"}
    assert all(bool(facts["label"]) != roster for facts in sites)
    if roster:
        assert {event.get("site") for event in events.log if "site" in event} == {"a", "b"}
    for site in ("a", "b"):
        here, there = read_lines(tmp_path / f"{site}.audit.jsonl"), read_lines(tmp_path / "audit.jsonl")
        assert [f.text for f in compare(here, there, site=site, run="toy") if f.level == "problem"] == []


def test_a_site_that_is_not_of_this_run_is_not_asked(tmp_path: Path) -> None:
    ruled = {name: site_rules.rules(tmp_path, name) for name in ("a", "b", "stranger")}
    grid, _ = site_rules.ruled_grid(tmp_path, ruled)
    numbers = {node: str(context.node_config["site"]) for node, context in grid._contexts.items()}
    given: dict[str, Any] = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 5.0}
    hooks = Hooks(names_of_nodes=lambda: numbers)
    toy.federate(grid, toy.toy_spec(), CheckpointStore(tmp_path / "run"), toy.Events([]), hooks=hooks, **given)
    assert [line.kind for line in read_lines(tmp_path / "stranger.audit.jsonl")] == ["opened"]
