"""metrics.csv: one row for each number of the events."""

from __future__ import annotations

import csv
from pathlib import Path

from fed_diffmic.reporting.curves import COLUMNS, Row, metric_rows, write_metrics_csv
from fed_diffmic.reporting.events import Event


def test_every_number_has_its_row(events: list[Event], tmp_path: Path) -> None:
    rows = metric_rows(events)
    rounds = [e for e in events if e["kind"] == "round_done"]
    sites = [e for e in events if e["kind"] == "site_done"]
    assert len(rows) == 5 * len(rounds) + 3 * len(sites)
    assert Row("pooled", "diffusion", 8, "global", "train", "loss", 1.8 / 8 + 0.1) in rows
    assert Row("local/rosendahl", "guidance", 2, "rosendahl", "train", "loss", 0.95) in rows
    with write_metrics_csv(tmp_path / "metrics.csv", events).open(newline="") as stream:
        back = list(csv.reader(stream))
    assert tuple(back[0]) == COLUMNS
    assert [Row(*r[:2], int(r[2]), *r[3:6], float(r[6])) for r in back[1:]] == rows  # no digit lost


def test_round_done_again_after_a_crash_counts_once() -> None:
    base = {"stage": "guidance", "rounds": 2, "figures": {"auroc_macro": 0.5}}
    events = [
        {"kind": "arm_started", "arm": "federated"},
        {"kind": "round_done", "round": 1, **base},
        {"kind": "resumed"},
        {"kind": "round_done", "round": 1, **base, "figures": {"auroc_macro": 0.6}},
    ]
    assert metric_rows(events) == [Row("federated", "guidance", 1, "global", "val", "auroc_macro", 0.6)]


def test_undefined_figures_are_left_out_and_full_ones_unwrapped() -> None:
    found = metric_rows(
        [
            {"kind": "round_done", "stage": "plain", "round": 1, "arm": "x", "figures": {"a": None}, "loss": None},
            {
                "kind": "figures",
                "split": "test",
                "site": "s",
                "figures": {"ece": {"value": 0.1}, "brier": {"value": None}},
            },
        ]
    )
    assert found == [Row("federated", "", None, "s", "test", "ece", 0.1)]
