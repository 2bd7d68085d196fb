"""What the site's people read of the worker's tasks: at the console and in `client status`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import journal as client_journal
from client import site as client_site
from client.journal import Journal
from fed_diffmic.exchange import failures
from tests import site_rules, toy
from tests.client.test_app import context, send, task


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts the site ``a`` under rules with a journal; returns how to."""
    toy.install_toy_networks(monkeypatch.setattr)
    source = toy.ToySource({"a": toy.toy_site("a", 1)})

    def under(**changes: Any) -> Journal:
        kept = Journal(tmp_path)
        rules = replace(site_rules.rules(tmp_path / "log", "a", **changes), journal=kept)
        client_site.register_source(source, rules=rules)
        return Journal(tmp_path)

    yield under
    client_site.register_source(source)


def test_a_round_is_said_with_run_stage_and_number(journal: Any, tmp_path: Path) -> None:
    reader = journal()
    send(task("train"), "train", context(tmp_path))
    (entry,) = reader.news()
    assert re.match(r"run toy, guidance round 1 of 2: update computed in \d+ s and handed in", entry.sentence())
    assert reader.news() == []
    send(task("evaluate"), "evaluate", context(tmp_path))  # one line a round is enough
    assert reader.news() == []
    assert [e.task for e in reader.entries()] == ["train", "evaluate"]


def test_the_last_round_and_the_end_are_said() -> None:
    last = client_journal.Entry(0.0, "train", "toy", "diffusion", 2, 2, last=True, seconds=8.0)
    assert last.sentence().endswith("this was the run's last round")
    assert "last" not in replace(last, last=False).sentence() and "last" not in replace(last, round=1).sentence()
    over = client_journal.Entry(0.0, "assess", "toy", "diffusion", 0, 2)
    assert "the run's training is over" in over.sentence()


def test_a_refusal_is_said_with_its_cause_and_remedy_once_in_a_while(
    journal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = journal(runs=["other"])
    for _ in range(3):
        send(task("train"), "train", context(tmp_path))
    (entry,) = reader.news()
    assert entry.code == failures.POLICY_RUN
    assert entry.sentence().startswith("run toy, guidance round 1")
    assert "refused: the site's policy does not name the run (code 2020)" in entry.sentence()
    assert "change policy.runs in site.yaml" in entry.sentence()
    monkeypatch.setattr(client_journal, "AGAIN_S", 0.0)
    send(task("train"), "train", context(tmp_path))
    assert len(reader.news()) == 1
    # what the remedy names is changed, and the request is done
    reader = journal(runs=["toy"])
    send(task("train"), "train", context(tmp_path))
    assert reader.news()[-1].code == 0


def test_a_journal_that_was_begun_anew_or_cannot_be_read_is_no_failure(tmp_path: Path) -> None:
    reader = Journal(tmp_path)
    assert reader.news() == [] and reader.entries() == []
    Journal(tmp_path).add("query", {"run": "r"})
    assert len(reader.news()) == 1
    reader.forget()
    (tmp_path / client_journal.FILE).write_text('{"at": 1}\nnothing\n')
    assert reader.entries() == [] and reader.news() == []
    Journal(tmp_path / "gone").add("query", {"run": "r"})
