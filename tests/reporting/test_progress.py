"""What a person reads while a run goes on, on a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from fed_diffmic.reporting.events import EventLog
from fed_diffmic.reporting.progress import PlainProgress, RichProgress, make_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def small_run(log: EventLog) -> None:
    """Two of three rounds at two sites."""
    log.emit("arm_started", arm="federated")
    log.emit("stage_started", stage="guidance", rounds=3)
    for r, seconds in ((1, 4.0), (2, 2.0)):
        log.emit("round_started", stage="guidance", round=r, rounds=3, sites=["a", "b"])
        for site in ("a", "b"):
            log.emit("site_done", stage="guidance", round=r, site=site, seconds=1.0, loss=0.5, bytes=10)
        log.emit(
            "round_done", stage="guidance", round=r, rounds=3, figures={"auroc_macro": 0.812}, loss=0.5, seconds=seconds
        )


def test_plain_lines() -> None:
    out = io.StringIO()
    log = EventLog(None, [PlainProgress(out)])
    small_run(log)
    log.emit("warning", code="site", message="b was late")
    log.emit("stage_stopped", stage="guidance", round=2, rounds=3, reason="no round was better")
    log.emit("stage_done", stage="guidance", best_round=2, chosen=True)
    log.emit("stage_done", stage="guidance", best_round=2, chosen=False)
    log.emit("run_done", seconds=75.2)
    assert out.getvalue().splitlines() == [
        "[federated] guidance round 1/3: 2 of 2 sites, validation macro AUROC 0.812, loss 0.500, 4.0 s, "
        "about 8 s left in this stage",
        "[federated] guidance round 2/3: 2 of 2 sites, validation macro AUROC 0.812, loss 0.500, 2.0 s, "
        "about 3 s left in this stage",
        "warning: b was late",
        "[federated] guidance: ends with round 2 of 3, no round was better",
        "[federated] guidance: kept round 2, the best on validation",
        "[federated] guidance: kept round 2, the last: no site says which is best",
        "run done in 1 min 15 s",
    ]


def test_models_of_a_sites_own_are_said_as_they_are_made() -> None:
    out = io.StringIO()
    log = EventLog(None, [PlainProgress(out)])
    for passes in (0.0, 1.0, 7.0):
        log.emit("personal_made", how="finetune", site="a", passes=passes)
    log.emit("personal_made", how="mixture", site="[b]", share=0.0)
    assert out.getvalue().splitlines() == [
        "[finetune] a: none better than it was",
        "[finetune] a: 1 pass",
        "[finetune] a: 7 passes",
        "[mixture] [b]: share of its own model 0.000",
    ]


def test_missing_sites_and_undefined_metrics_are_said_as_they_are() -> None:
    out = io.StringIO()
    log = EventLog(None, [PlainProgress(out)])
    log.emit("stage_started", stage="plain", rounds=1)
    log.emit("round_started", stage="plain", round=1, rounds=1, sites=3)
    log.emit("site_done", site="a")
    log.emit("site_refused", site="b", code="digest", reason="its digest does not match", stage="plain", round=1)
    log.emit(
        "round_done", stage="plain", round=1, rounds=1, figures={"auroc_macro": None}, loss=float("nan"), seconds=90
    )
    assert out.getvalue().splitlines() == [
        "warning: site b was refused, stage plain, round 1: its digest does not match",
        "[federated] plain round 1/1: 1 of 3 sites, 1 min 30 s",
    ]


def test_bars_on_a_terminal(emit: Callable[[EventLog], None]) -> None:
    out = Terminal()
    with EventLog(None, [RichProgress(Console(file=out, force_terminal=True, width=110))]) as log:
        small_run(log)
        shown = out.getvalue()
        log.emit("warning", code="x", message="[red]not markup[/red]")
    assert "federated · guidance" in shown and "round 2/3" in shown and "\x1b[?25l" in shown
    assert "[red]not markup[/red]" in out.getvalue()
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")  # the cursor is given back
    whole = Terminal()
    with EventLog(None, [RichProgress(Console(file=whole, force_terminal=True, width=110))]) as log:
        emit(log)
    assert "run done in 23 min 25 s" in whole.getvalue() and "warning" not in whole.getvalue()


def test_the_display_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_progress(Terminal()), RichProgress)
    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(Terminal()), PlainProgress)


def test_rounds_that_nobody_judged_are_said_with_what_can_be_done() -> None:
    out = io.StringIO()
    log = EventLog(None, [PlainProgress(out)])
    log.emit("stage_started", stage="plain", rounds=3)
    for purpose in ("evaluate", "calibrate", "conform", "test"):
        log.emit("figures_missing", stage="plain", round=2, purpose=purpose, reason="not there: d", todo="Wait for d.")
    kept = {"best_round": 1, "chosen": True, "last": "last/plain.safetensors"}
    log.emit("stage_done", stage="plain", **kept, unjudged=2)
    log.emit("stage_done", stage="plain", **kept, unjudged=1)
    said = "kept round 1, the best on validation"
    assert out.getvalue().splitlines() == [
        "warning: [federated] plain round 2: not judged: not there: d. Wait for d.",
        "warning: [federated] plain: not calibrated: not there: d. Wait for d.",
        "warning: [federated] plain: no prediction sets: not there: d. Wait for d.",
        "warning: [federated] plain: no figures of test images: not there: d. Wait for d.",
        f"[federated] plain: {said}; the last 2 rounds were not judged, and the weights that came of it are "
        "last/plain.safetensors in the run's folder",
        f"[federated] plain: {said}; the last round was not judged, and the weights that came of it are "
        "last/plain.safetensors in the run's folder",
    ]
