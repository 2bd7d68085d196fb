"""A synthetic run: predictions drawn here, measured and compared by the project's own functions. No real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fed_diffmic.reporting.events import Event, EventLog, read_events
from fed_diffmic.training import calibration
from fed_diffmic.training.comparison import difference, mean_over_sites
from fed_diffmic.training.metrics import Scored, compute_metrics

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
# Images for each class at each site; rosendahl sees no df and little vasc.
COUNTS = {
    "rosendahl": (60, 55, 90, 0, 70, 160, 6),
    "vidir_modern": (10, 25, 60, 12, 90, 210, 9),
    "vidir_molemax": (4, 3, 20, 5, 10, 330, 4),
    "vienna_dias": (12, 30, 40, 8, 60, 170, 12),
}
SIGNAL = {"federated": 2.2, "local": 1.5, "pooled": 2.5, "plain/federated": 1.9, "guidance": 2.15}


def predict(site: str, arm: str, split: str, task: str, signal: float) -> Scored:
    """Scores that carry ``signal``; truth and groups are the same for every arm."""
    position = sorted(COUNTS).index(site)
    truth = np.random.default_rng([position, len(split)])
    counts = np.array(COUNTS[site]) // 3
    labels = truth.permutation(np.repeat(np.arange(7), counts))
    groups = truth.integers(0, max(2, int(0.7 * len(labels))), len(labels))
    multi = np.eye(7, dtype=int)[labels]
    if task == "multilabel":
        multi |= (truth.random(multi.shape) < 0.05) & (counts > 0)
    shared, own = np.random.default_rng([position, 5]), np.random.default_rng([position, sum(map(ord, arm))])
    scores = signal * multi + shared.normal(size=multi.shape) * 0.9 + own.normal(size=multi.shape) * 0.45
    fitted = calibration.uncalibrated(np.full(7, 0.2), task)
    p = calibration.probabilities(scores + 0.5 * np.log(counts + 1), fitted)
    return Scored(
        p, calibration.decide(p, fitted, "probability"), multi if task == "multilabel" else labels, groups, task
    )


def measure(sites: dict[str, Scored], task: str) -> dict[str, Any]:
    """``global``, ``sites`` and ``mean`` of one arm's test split."""
    parts = list(sites.values())
    fields = ("probabilities", "decided", "labels")
    whole = [np.concatenate([getattr(part, field) for part in parts]) for field in fields]
    groups = np.concatenate([[f"{name}/{g}" for g in part.groups] for name, part in sites.items()])
    kwargs: Any = {"task": task, "classes": CLASSES, "bootstrap": 200, "seed": 0}
    each = {n: compute_metrics(s.probabilities, s.decided, s.labels, s.groups, **kwargs) for n, s in sites.items()}
    return {
        "global": {"test": compute_metrics(*whole, groups, **kwargs)},
        "sites": {name: {"test": found} for name, found in each.items()},
        "mean": {"test": mean_over_sites(sites, bootstrap=200, seed=0)},
    }


def build_summary(task: str = "multiclass", signal: dict[str, float] | None = None) -> dict[str, Any]:
    """A whole ``summary.json`` of a synthetic run with every baseline."""
    scored = {
        arm: {site: predict(site, arm, "test", task, value) for site in COUNTS}
        for arm, value in (signal or SIGNAL).items()
    }
    blocks = {arm: measure(sites, task) for arm, sites in scored.items()}
    ours = blocks.pop("federated")
    for site, block in ours["sites"].items():
        total = sum(COUNTS[site])
        tested = block["test"]["accuracy"]["n"]
        block.update(n_train=total, n_val=total // 4, n_test=tested)
        block["class_counts"] = dict(zip(CLASSES, COUNTS[site], strict=True))
    baselines: dict[str, Any] = {}
    for arm, block in blocks.items():
        if "/" in arm:
            baselines.setdefault(arm.split("/")[0], {})[arm.split("/")[1]] = block
        else:
            baselines[arm] = block
    fitted = calibration.Calibration(task, 3.67, 0.25, (0.2,) * 7, 300, 0.61)
    return {
        "status": "done",
        "run": "2026-01-02-synthetic",
        "dataset": "synthetic test data",
        "seed": 3,
        "task": task,
        "classes": list(CLASSES),
        **ours,
        "baselines": baselines,
        "differences": {a: difference(scored["federated"], scored[a], bootstrap=200, seed=0) for a in blocks},
        "stages": {
            "guidance": {
                "rounds": 6,
                "best_round": 5,
                "seconds": 310.2,
                "bytes_sent": 183_000_000,
                "select": "auroc_macro",
            },
            "diffusion": {
                "rounds": 8,
                "best_round": 8,
                "seconds": 290.0,
                "bytes_sent": 96_500_000,
                "select": "auroc_macro",
            },
        },
        "seconds": 1405.2,
        "bytes_sent": 279_500_000,
        "versions": {"fed_diffmic": "0.1.0", "torch": "2.15", "flwr": "1.41"},
        "calibration": fitted.to_json(),
    }


def emit_run(log: EventLog) -> None:
    """The events of the synthetic run."""
    log.emit("run_started", run="2026-01-02-synthetic", sites=sorted(COUNTS), arms=["federated", "local", "pooled"])
    for shift, arm in enumerate(("federated", "pooled", "local/rosendahl", "local/vienna_dias", "plain/federated")):
        log.emit("arm_started", arm=arm)
        for stage, rounds in (("plain", 14),) if arm.startswith("plain") else (("guidance", 6), ("diffusion", 8)):
            log.emit("stage_started", stage=stage, rounds=rounds)
            for r in range(1, rounds + 1):
                names = [arm.split("/")[1]] if arm.startswith("local/") else sorted(COUNTS)
                log.emit("round_started", stage=stage, round=r, rounds=rounds, sites=names)
                for name in names:
                    log.emit("site_done", stage=stage, round=r, site=name, seconds=2.5, loss=1.9 / r, bytes=4_000_000)
                gain = 1 - np.exp(-0.5 * r - 0.1 * shift)
                shown = {"auroc_macro": 0.55 + 0.35 * gain, "balanced_accuracy": 0.2 + 0.4 * gain}
                facts: Any = {
                    "figures": shown,
                    "loss": 1.8 / r + 0.1 * shift,
                    "bytes_sent": 16_000_000,
                    "seconds": 11.0,
                }
                log.emit("round_done", stage=stage, round=r, rounds=rounds, **facts)
            log.emit("stage_done", stage=stage, best_round=rounds, seconds=100.0)
        log.emit("arm_done", arm=arm, seconds=300.0)
    log.emit("run_done", seconds=1405.2, bytes_sent=279_500_000)


@pytest.fixture(scope="session")
def make_summary() -> Callable[..., dict[str, Any]]:
    """Builds a synthetic summary (task, signal of each arm)."""
    return build_summary


@pytest.fixture(scope="session")
def summary() -> dict[str, Any]:
    """The synthetic summary; not to be changed by a test."""
    return build_summary()


@pytest.fixture(scope="session")
def emit() -> Callable[[EventLog], None]:
    """Emits the synthetic run into a log."""
    return emit_run


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The synthetic run's events, through a real file."""
    path: Path = tmp_path_factory.mktemp("events") / "events.jsonl"
    with EventLog(path) as log:
        emit_run(log)
    return read_events(path)
