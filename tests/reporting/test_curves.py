"""metrics.csv: one row for each number of the events."""

from __future__ import annotations

import csv
from pathlib import Path

from fed_diffmic.reporting.curves import COLUMNS, Row, kept_rows, metric_rows, write_metrics_csv
from fed_diffmic.reporting.events import Event


def test_every_number_has_its_row(events: list[Event], tmp_path: Path) -> None:
    rows = metric_rows(events)
    rounds = [e for e in events if e["kind"] == "round_done"]
    sites = [e for e in events if e["kind"] == "site_done"]
    assert len(rows) == 5 * len(rounds) + 3 * len(sites)
    assert Row("pooled", 1.0, "diffusion", 8, "global", "train", "loss", 1.8 / 8 + 0.1) in rows
    assert Row("local/rosendahl", 1.0, "guidance", 2, "rosendahl", "train", "loss", 0.95) in rows
    with write_metrics_csv(tmp_path / "metrics.csv", events).open(newline="") as stream:
        back = list(csv.reader(stream))
    assert tuple(back[0]) == COLUMNS
    read = [Row(r[0], float(r[1]), r[2], int(r[3]), *r[4:7], float(r[7]), r[8]) for r in back[1:]]
    assert read == rows, "no digit is lost"


def test_round_done_again_after_a_crash_counts_once() -> None:
    base = {"stage": "guidance", "rounds": 2, "figures": {"auroc_macro": 0.5}}
    events = [
        {"kind": "arm_started", "arm": "federated"},
        {"kind": "round_done", "round": 1, **base},
        {"kind": "resumed"},
        {"kind": "round_done", "round": 1, **base, "figures": {"auroc_macro": 0.6}},
    ]
    assert metric_rows(events) == [Row("federated", 1.0, "guidance", 1, "global", "val", "auroc_macro", 0.6)]


def test_undefined_metrics_are_left_out_and_full_ones_unwrapped() -> None:
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
    assert found == [Row("federated", 1.0, "", None, "s", "test", "ece", 0.1)]


def test_trials_of_the_learning_rate_are_kept_apart_and_curves_show_the_one_chosen() -> None:
    events: list[Event] = [{"kind": "arm_started", "arm": "pooled"}]
    for scale in (0.3, 3.0):
        events.append({"kind": "trial_started", "arm": "pooled", "lr_scale": scale})
        events.append({"kind": "round_done", "arm": "pooled", "stage": "plain", "round": 1, "loss": scale})
    rows = metric_rows(events)
    assert [(row.lr_scale, row.value) for row in rows] == [(0.3, 0.3), (3.0, 3.0)]
    assert kept_rows(events) == rows[1:]  # not done: the last one
    assert kept_rows([*events, {"kind": "arm_done", "arm": "pooled", "lr_scale": 0.3}]) == rows[:1]
    assert metric_rows([*events, {"kind": "arm_started", "arm": "plain"}, events[-1]])[-1].lr_scale == 1


def test_trials_of_an_optimizer_are_kept_apart_too_at_the_same_rate() -> None:
    events: list[Event] = [{"kind": "arm_started", "arm": "local/a"}]
    for optimizer in ("adamw", "sgd"):
        events.append({"kind": "trial_started", "arm": "local/a", "lr_scale": 1.0, "optimizer": optimizer})
        loss = {"adamw": 0.4, "sgd": 0.7}[optimizer]
        events.append({"kind": "round_done", "arm": "local/a", "stage": "plain", "round": 1, "loss": loss})
    rows = metric_rows(events)
    assert [(row.optimizer, row.value) for row in rows] == [("adamw", 0.4), ("sgd", 0.7)]
    assert kept_rows(events) == rows[1:]
    done: Event = {"kind": "arm_done", "arm": "local/a", "lr_scale": 1.0, "optimizer": "adamw"}
    assert kept_rows([*events, done]) == rows[:1]


def test_a_site_s_validation_metrics_are_rows_of_that_site() -> None:
    event = {
        "kind": "site_evaluated",
        "stage": "plain",
        "round": 2,
        "site": "a",
        "bytes": 9,
        "loss": 0.4,
        "ece": 0.1,
        "n": 3,
    }
    assert metric_rows([event]) == [
        Row("federated", 1.0, "plain", 2, "a", "val", "ece", 0.1),
        Row("federated", 1.0, "plain", 2, "a", "val", "loss", 0.4),
    ]
