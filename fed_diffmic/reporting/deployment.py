"""A real run's ``report.html`` at the coordinator: what the sites let out, and nothing that only they could know."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fed_diffmic.files import atomic_write
from fed_diffmic.reporting import live, page
from fed_diffmic.reporting.curves import kept_rows
from fed_diffmic.reporting.events import Event
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.report import (
    DISCLAIMER,
    curves_section,
    matrix_section,
    metric_cell,
    privacy_section,
    warnings_notice,
)
from fed_diffmic.reporting.story import MAIN_METRICS
from fed_diffmic.reporting.sureness import sureness_section
from fed_diffmic.reporting.view import DASH, duration, number, size
from fed_diffmic.training.matrix import LEAST_POSITIVES, rarest

KIND = "federation"  # `kind` in a coordinator's summary.json
STAGES = ("diffusion", "guidance", "plain")


def write_deployment_report(
    run_dir: Path,
    summary: Mapping[str, Any],
    *,
    events: Sequence[Event],
    config_yaml: str,
    path: Path | None = None,
    interactive: bool = False,
) -> Path:
    """Write ``run_dir/report.html``, or ``path``, atomically.

    Args:
        run_dir: the run's folder.
        summary: what the coordinator's ``summary.json`` holds.
        events: of the run, for curves and warnings.
        config_yaml: the resolved configuration.
        path: where to, if not into the run's folder.
        interactive: as for :func:`fed_diffmic.reporting.report.write_report`.

    Returns:
        The file's path.

    Raises:
        MachineError: the file cannot be written.
        UsageError: interactive, and plotly is not installed.
    """
    metric = MAIN_METRICS[summary["task"]][0]
    head, scripts = live.head() if interactive else (None, "")
    title = f"fed_diffmic: {summary['run']}"
    document = page.page(
        title,
        Html(f'<header class="top"><h1>{page.text(title)}</h1></header>'),
        page.paragraph(DISCLAIMER, "soft"),
        _opening(summary),
        warnings_notice(events),
        _tiles(summary, events),
        _sites(summary, events),
        matrix_section(summary, metric, interactive),
        sureness_section(summary, _judged(summary)[1]),
        curves_section(kept_rows(events), metric, interactive),
        privacy_section(summary),
        _how(summary, config_yaml),
        Html(f"<footer>{page.text(DISCLAIMER)}</footer>"),
        head=head,
        scripts=scripts,
    )
    return atomic_write(path or run_dir / "report.html", document.encode())


def _judged(summary: Mapping[str, Any]) -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """The last stage that has cells, and its row."""
    matrix = summary.get("matrix") or {}
    stage = next((name for name in STAGES if name in matrix), "")
    return stage, matrix.get(stage, {})


def _opening(summary: Mapping[str, Any]) -> Html:
    _, row = _judged(summary)
    metric = "auroc_macro"
    told = {site: cell[metric] for site, cell in row.items() if cell[metric]["value"] is not None}
    silent = sorted(set(row) - set(told))
    if not row:
        headline = "Nobody was asked for metrics on test images (run.test_s is 0)."
    elif not told:
        headline = "No site let out metrics on its test images: how good this model is, only the sites can say."
    else:
        low, high = (pick(told, key=lambda site: told[site]["value"]) for pick in (min, max))
        if len(told) == 1:
            span = f"{number(told[low]['value'])} ({low}, the only site that let it out)"
        else:
            span = f"between {number(told[low]['value'])} ({low}) and {number(told[high]['value'])} ({high})"
        of = "site" if len(row) == 1 else "sites"
        headline = f"On the test images of {len(told)} of {len(row)} {of} the model's macro AUROC is {span}."
    points = []
    if told and silent:
        points.append(f"No figure came from {', '.join(silent)}: its policy, too few images, or it was not there.")
    points.append(
        "Whether it is better than the model that a site uses now, each site finds out for itself "
        "(fed-diffmic client compare)."
    )
    items = "".join(f"<li>{page.text(point)}</li>" for point in points)
    return Html(f'<div class="story unknown">{page.paragraph(headline, "headline")}<ul>{items}</ul></div>')


def missed_replies(summary: Mapping[str, Any], events: Sequence[Event]) -> dict[str, set[tuple[str, int]]]:
    """Stage and round of every request that a site did not answer well, by site.

    Rounds that failed and were done again by a resumed run are in the events alone; they happened all the same.
    """
    missed: dict[str, set[tuple[str, int]]] = {}
    for row in summary.get("rounds") or []:
        for site in row.get("missing") or {}:
            missed.setdefault(site, set()).add((str(row["stage"]), int(row["round"])))
    for event in events:
        if event["kind"] in ("site_failed", "site_refused") and event.get("stage") and event.get("round"):
            missed.setdefault(str(event.get("site")), set()).add((str(event["stage"]), int(event["round"])))
    return missed


def _tiles(summary: Mapping[str, Any], events: Sequence[Event]) -> Html:
    rounds = summary.get("rounds") or []
    missed = sum(len(places) for places in missed_replies(summary, events).values())
    again = sum(event["kind"] == "resumed" for event in events)
    resumed = "" if not again else f"; resumed {'once' if again == 1 else f'{again} times'}"
    tiles = [
        (str(len(summary.get("sites") or {})), f"sites, {len(summary['classes'])} classes"),
        (str(len(rounds)), (f"rounds; replies missing: {missed}" if missed else "rounds, no reply missing") + resumed),
        (duration(summary.get("seconds")), f"and {size(summary.get('bytes_sent'))} sent between sites and coordinator"),
    ]
    return page.tiles(tiles)


def _training_images(site: str, facts: Mapping[str, Any], noisy: Collection[str]) -> object:
    """How many images a site trained on, as it said it; a private site's number is none of images."""
    count = facts.get("train") or DASH
    return page.stacked(str(count), "a public number or noised, not a count") if site in noisy else count


def _sites(summary: Mapping[str, Any], events: Sequence[Event]) -> Html:
    _, row = _judged(summary)
    gone = missed_replies(summary, events)
    noisy = {name for line in summary.get("rounds") or [] for name in line.get("privacy") or {}}
    lines = []
    for site, facts in sorted((summary.get("sites") or {}).items()):
        missed = len(gone.get(site, ()))
        cell = row.get(site) or {}
        withheld = "" if not cell.get("n") or cell["complete"] else "some counts kept back"
        least = rarest(cell)
        mark = "a class has few: read with care" if 0 < (least or 0) < LEAST_POSITIVES else withheld
        tested = page.stacked(str(cell["n"]), mark) if cell.get("n") else DASH
        metrics = [metric_cell(cell.get(name)) for name in ("auroc_macro", "balanced_accuracy", "ece")]
        lines.append([site, _training_images(site, facts, noisy), missed, tested, *metrics])
    columns = ["site", "training images", "replies missing", "test images", "macro AUROC", "balanced accuracy"]
    caption = "The final model on each site's own test images, 95 % interval below, as far as the site let it out."
    note = (
        "The metrics are each site's own word. They were asked for once, when no round was left to be chosen; "
        "intervals come from a bootstrap over patients at the site. Sites differ in their patients and classes: a "
        "lower figure is not a worse site."
    )
    table = page.table([*columns, "calibration error"], lines, caption=caption)
    return page.section("Site by site", table, page.paragraph(note, "soft"))


def _how(summary: Mapping[str, Any], config_yaml: str) -> Html:
    signed = summary.get("signed_by") or ""
    facts = [["run", summary["run"]], ["seed", summary.get("seed", DASH)], ["task", summary["task"]]]
    facts += [["classes", ", ".join(summary["classes"])]]
    facts += [["final model signed by", signed or "nobody"]]
    facts += [[f"weights of {stage}", digest] for stage, digest in (summary.get("digests") or {}).items()]
    return page.section(
        "How it was made",
        page.table(["what", "value"], facts, words=True),
        page.details("Configuration", Html(f"<pre>{page.text(config_yaml)}</pre>")),
    )
