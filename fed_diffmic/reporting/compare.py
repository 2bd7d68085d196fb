"""Finished runs side by side in one page: how their settings differ, their test metrics, and paired differences.

A paired difference needs the same test images: the same partition (by its digest) and the same labels and groups in
``predictions.safetensors``. Where they are not the same, metrics stand beside each other and the page says that they
cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fed_diffmic.config.text import flattened
from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.files import atomic_write, load_tensors, read_json
from fed_diffmic.reporting import page, plots
from fed_diffmic.reporting.curves import GLOBAL, Row, kept_rows
from fed_diffmic.reporting.events import read_events
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.report import DISCLAIMER, metric_cell
from fed_diffmic.reporting.story import HELPED, MAIN_METRICS, UNKNOWN, WORSE, verdict
from fed_diffmic.reporting.view import (
    DASH,
    FEDERATED,
    METRIC_NAMES,
    arms,
    duration,
    mean_measured,
    measured,
    size,
    with_interval,
)
from fed_diffmic.training.comparison import difference
from fed_diffmic.training.metrics import Scored

PLACES = ("run", "dataset.root", "dataset.cache_dir", "model.weights", "model.prior_weights")  # where, not what
_SAYS = {HELPED: "better than", WORSE: "worse than"}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's own files.

    Attributes:
        label: what it is called on the page.
        summary: ``summary.json``.
        settings: the configuration by dotted key, without what only says where files are.
        rows: its curves.
        test: the federated model's test predictions by site; empty where groups were not kept (older runs).
    """

    label: str
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    test: Mapping[str, Scored]


def read_summary(folder: Path) -> dict[str, Any]:
    """A finished run's ``summary.json``.

    Raises:
        UsageError: the folder holds no finished run.
        ModelFileError: the file is torn.
    """
    if not (folder / "summary.json").is_file():
        raise UsageError(f"{folder}: no finished run is here", "Name a run's folder, the one with summary.json.")
    summary: dict[str, Any] = read_json(folder / "summary.json")
    return summary


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read finished runs, with labels that tell them apart.

    Raises:
        UsageError: a folder without a finished run; runs of another task or with other classes than the first.
        ModelFileError: a file of a run is torn.
    """
    summaries = [read_summary(folder) for folder in folders]
    names = [str(summary.get("run") or folder.name) for summary, folder in zip(summaries, folders, strict=True)]
    labels = [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]
    for folder, summary in zip(folders, summaries, strict=True):
        for what in ("task", "classes"):
            if summary[what] != summaries[0][what]:
                raise UsageError(
                    f"{folder}: this run's {what} ({_words(summary[what])}) are not those of {folders[0]} "
                    f"({_words(summaries[0][what])})",
                    "Compare runs on the same classes.",
                )
    return [
        FinishedRun(
            label, summary, _settings(folder), kept_rows(read_events(folder / "events.jsonl")), _test(folder, summary)
        )
        for label, summary, folder in zip(labels, summaries, folders, strict=True)
    ]


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelFileError(f"{folder}: config.yaml cannot be read", "Restore it from a backup.") from error
    flat = flattened(value)
    return {key: entry for key, entry in flat.items() if not any(f"{key}.".startswith(f"{p}.") for p in PLACES)}


def _test(folder: Path, summary: Mapping[str, Any]) -> dict[str, Scored]:
    """The federated model's test predictions by site; empty where the file or its groups are missing."""
    path = folder / "predictions.safetensors"
    tensors = load_tensors(path) if path.is_file() else {}
    found = {}
    for site in summary.get("sites") or {}:
        names = [f"{FEDERATED}|{site}|probabilities", f"{FEDERATED}|{site}|decided", f"{site}|labels", f"{site}|groups"]
        if not all(name in tensors for name in names):
            return {}
        probabilities, decided, labels, groups = (tensors[name] for name in names)
        found[site] = Scored(probabilities, decided, labels, groups, summary["task"])
    return found


def compared(first: FinishedRun, other: FinishedRun, bootstrap: int = 1000) -> dict[str, Any] | None:
    """Paired difference ``other`` minus ``first`` on test images; none where they were not tested on the same ones."""
    digests = [(run.summary.get("partition") or {}).get("digest") for run in (first, other)]
    if not first.test or set(first.test) != set(other.test) or digests[0] != digests[1] or digests[0] is None:
        return None
    for name, scored in first.test.items():
        theirs = other.test[name]
        if not (np.array_equal(scored.labels, theirs.labels) and np.array_equal(scored.groups, theirs.groups)):
            return None
    return difference(other.test, first.test, bootstrap=bootstrap, seed=int(first.summary.get("seed") or 0))


def _opening(runs: Sequence[FinishedRun], gaps: Sequence[Mapping[str, Any] | None], metric: str) -> Html:
    first, points = runs[0], []
    for run, gap in zip(runs[1:], gaps, strict=True):
        mean = (gap or {}).get("mean", {}).get(metric)
        said = verdict(mean, metric)
        name = METRIC_NAMES[metric]
        if mean is None:
            points.append(
                f"{run.label} and {first.label} were not tested on the same images (another data set, partition or "
                "seed), or an older run does not hold what would tell: nothing is said about which is better."
            )
        elif said in _SAYS:
            points.append(
                f"{run.label} is {_SAYS[said]} {first.label}: {name} {with_interval(mean, sign=True)}, mean over sites."
            )
        else:
            why = "no interval can be given" if said == UNKNOWN else "the interval holds zero"
            points.append(
                f"Between {run.label} and {first.label} no difference is shown: {name} "
                f"{with_interval(mean, sign=True)} ({why})."
            )
    items = "".join(f"<li>{page.text(point)}</li>" for point in points)
    return Html(f'<div class="story"><ul>{items}</ul></div>')


def _differing(runs: Sequence[FinishedRun]) -> Html:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    missing = object()
    rows = []
    for key in keys:
        values = [run.settings.get(key, missing) for run in runs]
        if any(value != values[0] for value in values):
            rows.append(
                [key, *(DASH if value is missing else "none" if value is None else _words(value) for value in values)]
            )
    if not rows:
        return page.section("What differs", page.paragraph("Nothing in the configuration."))
    return page.section("What differs", page.table(["setting", *(run.label for run in runs)], rows, words=True))


def _metrics(runs: Sequence[FinishedRun], gaps: Sequence[Mapping[str, Any] | None], metric: str) -> Html:
    blocks = [arms(run.summary)[FEDERATED] for run in runs]
    sites = list(dict.fromkeys(site for run in runs for site in run.summary.get("sites") or {}))
    columns: list[object] = [run.label for run in runs]
    columns += [f"{run.label} minus {runs[0].label}" for run, gap in zip(runs[1:], gaps, strict=True) if gap]
    rows: list[list[object]] = [["all test images", *(metric_cell(measured(block, metric)) for block in blocks)]]
    rows[0] += [""] * (len(columns) - len(runs))
    rows.append(["mean over sites", *(metric_cell(mean_measured(block, metric)) for block in blocks)])
    rows[1] += [metric_cell(gap["mean"][metric], sign=True) for gap in gaps if gap]
    for site in sites:
        line: list[object] = [site, *(metric_cell(measured(block, metric, site=site)) for block in blocks)]
        rows.append(line + [metric_cell(gap["sites"].get(site, {}).get(metric), sign=True) for gap in gaps if gap])
    name = METRIC_NAMES[metric]
    table = page.table(["test images of", *columns], rows, caption=f"{name}, 95 % interval below", sums=2)
    return page.section(name[0].upper() + name[1:], table)


def _costs(runs: Sequence[FinishedRun]) -> Html:
    rows = []
    for run in runs:
        stages = run.summary.get("stages") or {}
        rounds = ", ".join(f"{name} {stage.get('rounds', DASH)}" for name, stage in stages.items())
        # Not the run's own seconds: a resumed run counts those of its last process only.
        seconds = sum(float(stage.get("seconds") or 0) for stage in stages.values()) if stages else None
        privacy = " ".join(run.summary.get("privacy") or []) or "none"
        rows.append([run.label, rounds, duration(seconds), size(run.summary.get("bytes_sent")), privacy])
    columns = ["run", "rounds", "time of these rounds", "sent", "privacy"]
    return page.section("What it cost", page.table(columns, rows, words=True))


def _curves(runs: Sequence[FinishedRun], metric: str) -> Html:
    drawn = []
    stages = dict.fromkeys(row.stage for run in runs for row in run.rows if row.stage)
    for stage in stages:
        lines = {
            run.label: [
                (row.round, row.value)
                for row in run.rows
                if (row.arm, row.stage, row.split, row.metric, row.site) == (FEDERATED, stage, "val", metric, GLOBAL)
                and row.round is not None
            ]
            for run in runs
        }
        plot = plots.runs_plot({label: sorted(points) for label, points in lines.items() if points}, metric)
        if plot is not None:
            drawn.append(
                page.picture(plots.data_uri(plot), f"Stage {stage}: validation {METRIC_NAMES[metric]} by round.")
            )
    return page.section("Training", page.pictures(drawn)) if drawn else Html("")


def write_comparison(path: Path, runs: Sequence[FinishedRun]) -> Path:
    """Write the page, atomically. The first run is what the others are held against.

    Raises:
        UsageError: fewer than two runs.
        MachineError: the file cannot be written.
    """
    if len(runs) < 2:
        raise UsageError("a comparison needs two runs or more", "Name the others after --compare.")
    metrics = MAIN_METRICS[runs[0].summary["task"]]
    gaps = [compared(runs[0], run) for run in runs[1:]]
    title = f"fed_diffmic: {len(runs)} runs compared"
    note = (
        "Federated models only; each run's own report holds its baselines. A difference is paired: both models on the "
        "same resamples of the same groups (patients, lesions). Each is a 95 % interval of its own: of many, one in "
        "twenty without any true difference looks like one. What another seed would change is not in it."
    )
    document = page.page(
        title,
        Html(f'<header class="top"><h1>{page.text(title)}</h1></header>'),
        page.paragraph(DISCLAIMER, "soft"),
        _opening(runs, gaps, metrics[0]),
        _differing(runs),
        *(_metrics(runs, gaps, metric) for metric in metrics),
        page.paragraph(note, "soft"),
        _curves(runs, metrics[0]),
        _costs(runs),
        Html(f"<footer>{page.text(DISCLAIMER)}</footer>"),
    )
    return atomic_write(path, document.encode())
