"""``report.html``: one file that a colleague can open, mail or print, the story first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fed_diffmic.files import atomic_write
from fed_diffmic.reporting import live, page, plots
from fed_diffmic.reporting.clinic import front_page
from fed_diffmic.reporting.curves import Row, kept_rows
from fed_diffmic.reporting.elsewhere import external_section
from fed_diffmic.reporting.events import Event, trouble
from fed_diffmic.reporting.examples import examples_section, load_examples
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.story import HELPED, MAIN_METRICS, UNCLEAR, UNKNOWN, WORSE, tell, verdict
from fed_diffmic.reporting.sureness import sureness_section
from fed_diffmic.reporting.view import (
    DASH,
    FEDERATED,
    METRIC_NAMES,
    arm_name,
    arms,
    chance,
    duration,
    mean_measured,
    measured,
    number,
    paired,
    size,
    words_of,
)
from fed_diffmic.training.matrix import AT_SPECIFICITY, LEAST_POSITIVES, SPECIFICITY, comparable, rarest

DISCLAIMER = "For research. Not a medical device: nothing here may be used to diagnose or to treat a patient."
FEW_POSITIVES = 10
Tables = Mapping[str, tuple[Sequence[str], Sequence[Sequence[object]]]]
_SIGNS = {HELPED: "\N{BLACK UP-POINTING TRIANGLE} better", WORSE: "\N{BLACK DOWN-POINTING TRIANGLE} worse"}
_SIGNS |= {UNCLEAR: "unclear", UNKNOWN: "cannot be said"}


def metric_cell(entry: Mapping[str, Any] | None, *, sign: bool = False) -> Html:
    """A figure with its interval under it."""
    if entry is None or entry.get("value") is None:
        return Html(DASH)
    low, high = (number(entry.get(key), sign=sign) for key in ("low", "high"))
    return page.stacked(number(entry["value"], sign=sign), "" if entry.get("low") is None else f"{low} to {high}")


def _tiles(summary: Mapping[str, Any]) -> Html:
    ours = arms(summary)[FEDERATED]
    tiles = []
    for metric in MAIN_METRICS[summary["task"]]:
        entry = measured(ours, metric)
        spread = "" if entry["low"] is None else f"{number(entry['low'])} to {number(entry['high'])}, "
        tiles.append((number(entry["value"]), f"{METRIC_NAMES[metric]}, all test images ({spread}n = {entry['n']})"))
    sites = summary.get("sites") or {}
    images = sum(int(block.get(f"n_{split}") or 0) for block in sites.values() for split in ("train", "val", "test"))
    tiles.append((str(len(sites)), f"sites, {images} images, {len(summary['classes'])} classes"))
    tiles.append(
        (duration(summary.get("seconds")), f"and {size(summary.get('bytes_sent'))} sent between sites and coordinator")
    )
    return page.tiles(tiles)


def _opening(summary: Mapping[str, Any], events: Sequence[Event]) -> Html:
    story = tell(summary)
    points = "".join(f"<li>{page.text(point)}</li>" for point in story.points)
    headline = page.paragraph(story.headline, "headline")
    parts: list[object] = [Html(f'<div class="story {story.verdict}">{headline}<ul>{points}</ul></div>')]
    if summary.get("status") != "done":
        parts.insert(0, page.paragraph(f"This run is not finished (status: {summary.get('status')}).", "notice"))
    if (summary.get("calibration") or {}).get("at_edge"):
        said = "The calibration ended at the edge of its grid: take the probabilities of this model with care."
        parts.append(page.paragraph(said, "notice"))
    parts.append(warnings_notice(events))
    return page.join(parts)


def warnings_notice(events: Sequence[Event]) -> Html:
    """What went wrong on the way, each thing once; empty where nothing did."""
    troubles = ("warning", "site_failed", "site_refused")
    warned = list(dict.fromkeys(trouble(event) for event in events if event["kind"] in troubles))
    items = "".join(f"<li>{page.text(message)}</li>" for message in warned)
    return Html(f'<div class="notice"><b>Warnings of this run</b><ul>{items}</ul></div>') if warned else Html("")


def _absent(entry: Mapping[str, Any], classes: Sequence[str]) -> str:
    if not entry.get("classes"):
        return "undefined: needs images with and without a class"
    missing = [name for name in classes if name not in entry["classes"]]
    return f"without {', '.join(missing)}" if missing else ""


def _site_table(summary: Mapping[str, Any], metric: str) -> Html:
    models = arms(summary)
    others = [arm for arm in models if arm != FEDERATED]
    columns: list[object] = [page.stacked("site", "train / val / test images"), "federated"]
    local = "local" in models
    if local:
        columns += ["difference to alone", "verdict"]
    columns += [arm_name(arm) for arm in others]

    def line(name: str, sizes: str, site: str | None, mean: bool) -> list[object]:
        def get(arm: str) -> dict[str, Any]:
            return mean_measured(models[arm], metric) if mean else measured(models[arm], metric, site=site)

        own = get(FEDERATED)
        under = ", ".join(part for part in (sizes, "" if mean else _absent(own, summary["classes"])) if part)
        cells: list[object] = [page.stacked(name, under), metric_cell(own)]
        if local:
            gap = paired(summary, "local", metric, site)
            compared = mean or site is not None  # the union of all sites has no paired difference of its own
            cells += [metric_cell(gap, sign=True), _SIGNS[verdict(gap, metric)]] if compared else ["", ""]
        return [*cells, *(metric_cell(get(arm)) for arm in others)]

    sites = summary.get("sites") or {}
    whole = " / ".join(str(sum(int(b.get(f"n_{s}") or 0) for b in sites.values())) for s in ("train", "val", "test"))
    rows = [line("all test images", whole, None, False), line("mean over sites", "", None, True)]
    for site in sorted(sites):
        rows.append(
            line(site, " / ".join(str(sites[site].get(f"n_{s}", DASH)) for s in ("train", "val", "test")), site, False)
        )
    known = chance(metric, summary["task"], len(measured(models[FEDERATED], metric).get("classes") or []))
    if known is not None:
        rows.append([page.stacked("chance", "a model that knows nothing"), number(known), *[""] * (len(columns) - 2)])
    return page.table(columns, rows, caption=f"{METRIC_NAMES[metric]} on test images, 95 % interval below", sums=2)


def _results(summary: Mapping[str, Any], interactive: bool) -> Html:
    metrics = MAIN_METRICS[summary["task"]]
    drawn = []
    if summary.get("sites"):
        for metric in metrics[:1]:
            gap = plots.difference_plot(summary, "local", metric)
            if gap is not None:
                said = f"Federated minus alone, {METRIC_NAMES[metric]}, on the same test images of each site."
                drawn.append(page.picture(plots.data_uri(gap), said))
            said = (
                f"Test {METRIC_NAMES[metric]} at each site, federated and baselines; the whiskers are 95 % intervals."
            )
            twin = live.attribute(live.site_drawing(summary, metric) if interactive else None)
            drawn.append(page.picture(plots.data_uri(plots.site_plot(summary, metric)), said, twin))
    parts: list[object] = [page.pictures(drawn)]
    for metric in metrics:
        parts += [
            Html(f"<h3>{page.text(METRIC_NAMES[metric][0].upper() + METRIC_NAMES[metric][1:])}</h3>"),
            _site_table(summary, metric),
        ]
    note = (
        "Intervals come from a bootstrap over groups (patients, lesions). A difference is paired: both models on the "
        "same resamples. Each is a 95 % interval of its own; among many sites, one in twenty without any true "
        "difference will look like one. A figure that leaves a class out is not comparable with one that holds it, nor "
        "are metrics of sites whose patients differ."
    )
    return page.section("Who gained, and how much", *parts, page.paragraph(note, "soft"))


def _all_metrics(summary: Mapping[str, Any]) -> Html:
    metrics = [m for m in METRIC_NAMES if m != "loss" and measured(arms(summary)[FEDERATED], m)["value"] is not None]
    rows = [
        [arm_name(arm), *(metric_cell(measured(block, metric)) for metric in metrics)]
        for arm, block in arms(summary).items()
        if block.get("global")
    ]
    columns = ["model", *(METRIC_NAMES[metric] for metric in metrics)]
    caption = "all test images together; Brier score and calibration error: smaller is better"
    return page.section("Every figure of every model", page.table(columns, rows, caption=caption))


def _per_class(summary: Mapping[str, Any]) -> Html:
    block = ((summary.get("global") or {}).get("test") or {}).get("per_class") or {}
    keys = ("auroc", "auprc", "sensitivity", "specificity", "f1")
    rows: list[list[object]] = []
    for name, entry in block.items():
        count = entry["positives"]
        mark = "absent" if count == 0 else "few: read with care" if count < FEW_POSITIVES else ""
        spans = entry.get("intervals") or {}
        cells = []
        for key in keys:
            low, high = spans.get(key) or (None, None)
            cells.append(metric_cell({"value": entry[key], "low": low, "high": high}))
        rows.append([page.stacked(name, mark), count, *cells])
    columns = ["class", "test images", "AUROC", "AUPRC", "sensitivity", "specificity", "F1"]
    return (
        page.table(columns, rows, caption="federated model, all test images, each class against the rest")
        if rows
        else Html("")
    )


def _classes(summary: Mapping[str, Any]) -> Html:
    test = (summary.get("global") or {}).get("test") or {}
    drawn = []
    if test.get("confusion"):
        caption = "Confusion of the federated model, all test images: rows are the truth, shade is the share of a row."
        drawn.append(page.picture(plots.data_uri(plots.confusion_plot(test["confusion"], summary["classes"])), caption))
    if test.get("reliability"):
        caption = (
            "Calibration on all test images: of what is stated at a probability, how much was right. On the dashed "
            "line is right; larger points hold more predictions."
        )
        drawn.append(page.picture(plots.data_uri(plots.reliability_plot(test["reliability"])), caption))
    known = words_of(summary)
    names = page.paragraph("; ".join(f"{name}: {said}" for name, said in known.items()) + ".", "soft") if known else ""
    parts = (page.pictures(drawn), names, _per_class(summary), _calibration(summary))
    return page.section("Classes and probabilities", *parts)


def _calibration(summary: Mapping[str, Any]) -> Html:
    fitted = summary.get("calibration") or {}
    if not fitted:
        return Html("")
    prior = f"{fitted['prior_weight']:g}"
    if fitted["task"] == "multilabel":
        form = f"sigmoid({fitted['scale']:.3g} score + {prior} logit(prior))"
    else:
        form = f"p ~ exp({fitted['scale']:.3g} score + {prior} log(prior))"
    if not fitted.get("n"):
        said = f"Probabilities from scores: {form}, not fitted: no validation metric left a site. Take them with care."
        return page.paragraph(said, "soft")
    said = (
        f"Probabilities from scores: {form}, fitted on {fitted['n']} validation images from sums that the sites sent "
        f"(mean negative log-likelihood {number(fitted.get('nll'))} nats)."
    )
    if fitted.get("blend"):
        said += (
            f" The score is {1 - fitted['blend']:g} of the second network's and {fitted['blend']:g} of the guidance"
            " network's, shares fitted with the rest."
        )
    return page.paragraph(said, "soft")


def curves_section(rows: Sequence[Row], metric: str, interactive: bool) -> Html:
    """Validation figure and training loss by round, for each stage; empty where there are none."""
    drawn = []
    for stage in dict.fromkeys(row.stage for row in rows if row.stage):
        for split, name in (("val", metric), ("train", "loss")):
            plot = plots.curve_plot(rows, stage, split, name)
            if plot is not None:
                what = f"validation {METRIC_NAMES[metric]}" if split == "val" else "training loss"
                twin = live.attribute(live.curve_drawing(rows, stage, split, name) if interactive else None)
                drawn.append(page.picture(plots.data_uri(plot), f"Stage {stage}: {what} by round.", twin))
    if not drawn:
        return Html("")
    note = "The round that is kept is chosen on validation images; test images are read once, at the end."
    return page.section("Training", page.pictures(drawn), page.paragraph(note, "soft"))


def _data(summary: Mapping[str, Any]) -> Html:
    sites = summary.get("sites") or {}
    counts = {name: block["class_counts"] for name, block in sites.items() if block.get("class_counts")}
    if not counts:
        return Html("")
    said = "Training images of each class at each site, an empty cell is none; on the right all of the site's images."
    plot = plots.partition_plot(counts, summary["classes"], {n: int(b.get("n_train") or 0) for n, b in sites.items()})
    parts = [page.picture(plots.data_uri(plot), said)]
    unlike = (summary.get("partition") or {}).get("heterogeneity")
    if unlike is not None:
        told = (
            f"How unlike the sites' class mixes are: {unlike:.3f}, the mean Jensen-Shannon divergence over pairs of "
            "sites (0: the same shares; 1: no class in common)."
        )
        parts.append(page.paragraph(told, "soft"))
    return page.section("Data", *parts)


def matrix_section(summary: Mapping[str, Any], metric: str, interactive: bool) -> Html:
    """Every model on every site's test images, with what may not be compared."""
    matrix = summary.get("matrix") or {}
    if not matrix or metric not in next(iter(next(iter(matrix.values())).values())):
        return Html("")
    said = (
        f"Test {METRIC_NAMES[metric]} of every model (rows) on every site's images (columns); a number in brackets is "
        f"not ranked: a class there has fewer than {LEAST_POSITIVES} positives."
    )
    groups = comparable(matrix)
    twin = live.attribute(live.matrix_drawing(matrix, metric) if interactive else None)
    parts = [page.picture(plots.data_uri(plots.matrix_plot(matrix, metric)), said, twin)]
    if len(groups) > 1:
        named = "; ".join(", ".join(sites) for sites in groups)
        warned = (
            "Macro metrics are means over the classes that a site's test images hold. Columns may be compared within "
            f"these groups only, because the others hold other classes or do not say which: {named}."
        )
        parts.append(page.paragraph(warned, "notice"))
    rows = []
    for model, row in matrix.items():
        for site, cell in row.items():
            least = rarest(cell)
            values = [metric_cell(cell[name]) for name in ("balanced_accuracy", "auroc_macro", AT_SPECIFICITY, "ece")]
            rows.append([arm_name(model), site, cell["n"], "kept back" if least is None else least, *values])
    sensitivity = f"sensitivity at {SPECIFICITY:.0%} specificity"
    columns = ["model", "images of", "n", "positives of the rarest class", "balanced accuracy", "macro AUROC"]
    parts.append(page.details("All cells of the matrix", page.table([*columns, sensitivity, "ECE"], rows)))
    return page.section("Every model at every site", *parts)


def privacy_section(summary: Mapping[str, Any]) -> Html:
    """What the sites claim, and what no claim covers; empty where no site claims anything."""
    lines = summary.get("privacy") or []
    return page.section("Privacy", *(page.paragraph(line) for line in lines)) if lines else Html("")


def _how(summary: Mapping[str, Any], config_yaml: str, tables: Tables) -> Html:
    parts: list[object] = []
    stages = summary.get("stages") or {}
    if stages:
        rows = [
            [
                name,
                s.get("rounds", DASH),
                s.get("best_round", DASH),
                s.get("select", DASH),
                duration(s.get("seconds")),
                size(s.get("bytes_sent")),
            ]
            for name, s in stages.items()
        ]
        parts.append(page.table(["stage", "rounds", "round kept", "chosen by", "time", "sent"], rows))
    for caption, (columns, lines) in tables.items():
        parts += [Html(f"<h3>{page.text(caption)}</h3>"), page.table(columns, lines)]
    facts = [["run", summary.get("run", DASH)], ["seed", summary.get("seed", DASH)], ["task", summary["task"]]]
    facts += [["time", duration(summary.get("seconds"))], ["sent", size(summary.get("bytes_sent"))]]
    facts += [[name, version] for name, version in (summary.get("versions") or {}).items()]
    parts += [Html("<h3>Versions and seeds</h3>"), page.table(["what", "value"], facts, words=True)]
    parts.append(
        page.details("Configuration (starts the same run again)", Html(f"<pre>{page.text(config_yaml)}</pre>"))
    )
    return page.section("How it was made", *parts)


def write_report(
    run_dir: Path,
    summary: Mapping[str, Any],
    *,
    events: Sequence[Event],
    config_yaml: str,
    tables: Tables | None = None,
    path: Path | None = None,
    interactive: bool = False,
) -> Path:
    """Write ``run_dir/report.html``, or ``path``, atomically.

    Args:
        run_dir: the run's folder.
        summary: what ``summary.json`` holds (its shape: :mod:`fed_diffmic.reporting.view`); a part that a run did not
            make is left out of the report.
        events: of the run, for curves and warnings.
        config_yaml: the resolved configuration.
        tables: further tables by caption: headings and rows.
        path: where to, if not into the run's folder.
        interactive: with plotly.js (5 MB) in the page; the static plots stay for paper and where no script runs.

    Returns:
        The file's path.

    Raises:
        MachineError: the file cannot be written.
        UsageError: interactive, and plotly is not installed.
    """
    dataset = (summary.get("dataset") or summary.get("run") or "run") if isinstance(summary, Mapping) else "run"
    title = f"fed_diffmic: {dataset}"
    top = Html(f'<header class="top"><h1>{page.text(title)}</h1></header>')
    metric = MAIN_METRICS[summary["task"]][0]
    head, scripts = live.head() if interactive else (None, "")
    document = page.page(
        title,
        top,
        page.paragraph(DISCLAIMER, "soft"),
        front_page(summary),
        _opening(summary, events),
        _tiles(summary),
        _results(summary, interactive),
        external_section(summary, MAIN_METRICS[summary["task"]]),
        _classes(summary),
        _all_metrics(summary),
        matrix_section(summary, metric, interactive),
        sureness_section(summary, (summary.get("matrix") or {}).get(FEDERATED) or {}),
        examples_section(load_examples(run_dir), summary["classes"]),
        curves_section(kept_rows(events), metric, interactive),
        privacy_section(summary),
        _data(summary),
        _how(summary, config_yaml, tables or {}),
        Html(f"<footer>{page.text(DISCLAIMER)}</footer>"),
        head=head,
        scripts=scripts,
    )
    return atomic_write(path or run_dir / "report.html", document.encode())
