"""How good a run's model is: metrics, operating points, subgroups, calibration, prediction sets, from its summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fed_diffmic.release.dossier.counts import FEW, LEAST, NOT_SAID, shown, subgroup_values, total_tells
from fed_diffmic.release.dossier.facts import (
    SUMMARY,
    Block,
    Fact,
    Sources,
    missing,
    named,
    section,
    table,
    text,
    warning,
)
from fed_diffmic.reporting.story import MAIN_METRICS
from fed_diffmic.reporting.untested import row_of
from fed_diffmic.reporting.view import METRIC_NAMES, words_of
from fed_diffmic.training.coverage import KINDS
from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY, POINTS

NAMES = {
    **METRIC_NAMES,
    AT_SPECIFICITY: "sensitivity at 90 % specificity",
    AT_SENSITIVITY: "specificity at 90 % sensitivity",
}
INTERVALS = (
    "In brackets 95 % intervals: of metrics by a bootstrap over patients or lesions where the data know them, of "
    "coverage exact and widened for images of one patient. They hold which patients there were, not another training."
)

IN_SUMS = ("accuracy", "balanced_accuracy", "auroc_macro", "ece")
WHY_NO_SITE = (
    "Each of these sites added counts of its test images under masks; the coordinator learnt the totals alone, so no "
    "site's own figures stand here, and none are known to it. At a single site the model may do better or worse. There "
    "are no intervals, because how images of one patient lie in the counts is not known; AUROC and operating points "
    "take images of nearly the same probability as tied."
)


def evaluation(sources: Sources, least: int = LEAST) -> dict[str, Any]:
    """How good the model is on test images."""
    summary = sources.tree(SUMMARY)
    if not summary:
        return section("evaluation", "Evaluation", missing("The run's folder holds no summary.json: nothing is known."))
    if summary.get("together"):
        blocks = _together(sources, least)
    else:
        blocks = [text(INTERVALS), *_overall(sources), *_sites(sources), *_classes(sources, least)]
    return section("evaluation", "Evaluation", *blocks, *_elsewhere(sources), *_subgroups(sources, least))


def _together(sources: Sources, least: int) -> list[Block]:
    """Of a run whose coordinator sees sums alone: figures over the test images of several sites, none of one site."""
    summary, place = sources.tree(SUMMARY), ("together",)
    among, counted = summary["together"]["sites"], not total_tells(sources, "test", least)
    rows: list[list[Any]] = [["test images", _or_few(sources, counted, *place, "n")]]
    rows += [[NAMES[name], fact] for name in IN_SUMS if (fact := sources.fact(SUMMARY, *place, name))]
    blocks = [
        table("Test images of the sites of one masked sum together", ["figure", "value"], rows),
        *_summed_classes(sources, least, counted),
        text(f"These are figures over the test images of {', '.join(among)} together. {WHY_NO_SITE}"),
    ]
    silent = sorted(set(summary.get("sites") or {}) - set(among))
    return [*blocks, *([missing(f"No figure on test images is known of {', '.join(silent)}.")] if silent else [])]


def _summed_classes(sources: Sources, least: int, counted: bool) -> list[Block]:
    """Each class against the rest in a masked sum; counts of few images are kept back, as everywhere."""
    place = ("together", "per_class")
    block, words = sources.at(SUMMARY, *place), words_of(sources.tree(SUMMARY))
    classes = [name for name in sources.at(SUMMARY, "classes") if name in block]
    lines = []
    for name, may in zip(classes, shown([block[name]["positives"] for name in classes], least), strict=True):
        cells = [_or_few(sources, may and counted, *place, name, "positives")]
        cells += [_or_few(sources, may, *place, name, key) for key in ("auroc", *POINTS)]
        lines.append([f"{words[name]} ({name})" if name in words else name, *cells])
    columns = ["class", "test images with it", "AUROC", *(NAMES[name] for name in POINTS)]
    return [table("Each class against the rest, test images of the sum together", columns, lines)]


def _overall(sources: Sources) -> list[Block]:
    metrics = [name for name in METRIC_NAMES if sources.fact(SUMMARY, "global", "test", name)]
    if not metrics:
        said = "Metrics over all test images together: no coordinator can compute them. Below are those by site."
        return [missing(said)]
    rows = [[NAMES[name], sources.fact(SUMMARY, "global", "test", name)] for name in metrics]
    main = MAIN_METRICS[sources.at(SUMMARY, "task")][0]
    gaps = [
        [f"federated minus {arm}, {NAMES[main]}, mean over sites", fact]
        for arm in sorted(sources.at(SUMMARY, "differences") or {})
        if (fact := sources.fact(SUMMARY, "differences", arm, "mean", main))
    ]
    return [
        table("All test images together", ["figure", "value"], rows),
        *([table("Against baselines of the same run", ["difference", "value"], gaps)] if gaps else []),
    ]


def _sites(sources: Sources) -> list[Block]:
    summary = sources.tree(SUMMARY)
    row = row_of(summary)
    names: tuple[str, ...] = ("balanced_accuracy", "auroc_macro", *POINTS, "ece")
    if row:
        matrix = summary["matrix"]
        model = next(name for name in ("federated", "diffusion", "guidance", "plain") if name in matrix)
        lines = [[site, *(sources.fact(SUMMARY, "matrix", model, site, name) for name in names)] for site in row]
        lines = [line for line in lines if any(cell is not None for cell in line[1:])]
        silent = sorted(site for site in row if site not in {line[0] for line in lines})
    else:
        names = ("balanced_accuracy", "auroc_macro", "ece")
        sites = sorted(summary.get("sites") or {})
        lines = [[site, *(sources.fact(SUMMARY, "sites", site, "test", name) for name in names)] for site in sites]
        lines = [line for line in lines if any(cell is not None for cell in line[1:])]
        silent = sorted(set(sites) - {str(line[0]) for line in lines})
    blocks = (
        [table("On each site's own test images", ["site", *(NAMES[name] for name in names)], lines)] if lines else []
    )
    if silent:
        blocks.append(missing(f"No figure on test images is known of {', '.join(silent)}."))
    return blocks


def _classes(sources: Sources, least: int) -> list[Block]:
    place = ("global", "test", "per_class")
    block = sources.at(SUMMARY, *place)
    if not block:
        return []
    words = words_of(sources.tree(SUMMARY))
    classes = [name for name in sources.at(SUMMARY, "classes") if name in block]
    may = shown([block[name]["positives"] for name in classes], least)
    lines, counted = [], not total_tells(sources, "test", least)
    for name, open_ in zip(classes, may, strict=True):
        cells: list[Fact | None] = [_or_few(sources, open_ and counted, *place, name, "positives")]
        cells += [_or_few(sources, open_, *place, name, key) for key in ("auroc", "sensitivity", "specificity")]
        cells += [_or_few(sources, open_, "operating_points", name, point) for point in POINTS]
        lines.append([f"{words[name]} ({name})" if name in words else name, *cells])
    columns = ["class", "test images with it", "AUROC", "sensitivity", "specificity", *(NAMES[name] for name in POINTS)]
    blocks = [table("Each class against the rest, all test images together", columns, lines)]
    if not sources.at(SUMMARY, "operating_points"):
        blocks.append(missing("Operating points: the version that made this run did not measure them."))
    return blocks


def _or_few(sources: Sources, may: bool, *place: str | int) -> Fact | None:
    if sources.at(SUMMARY, *place) is None:
        return None
    return sources.fact(SUMMARY, *place) if may else sources.withheld(FEW, SUMMARY, *place)


def _elsewhere(sources: Sources) -> list[Block]:
    names = sorted(sources.at(SUMMARY, "external") or {})
    if not names:
        return [missing("Test images from elsewhere: none were named for this run.")]
    metrics = MAIN_METRICS[sources.at(SUMMARY, "task")]
    rows = [
        [name, *(sources.fact(SUMMARY, "external", name, "models", "federated", metric) for metric in metrics)]
        for name in names
    ]
    return [table("On images from elsewhere", ["test set", *(NAMES[metric] for metric in metrics)], rows)]


def _subgroups(sources: Sources, least: int) -> list[Block]:
    told = _told(sources)
    lines = []
    for site, place in told.items():
        for column, values in sorted(sources.at(SUMMARY, *place).items()):
            may = subgroup_values(values, _tested(sources, site), least)
            for value, cell in sorted(values.items()):
                spot = (*place, column, value)
                if value not in may:
                    why = NOT_SAID if cell.get("n") is None else FEW
                    lines.append([site, column, value, sources.withheld(why, SUMMARY, *spot, "n"), None, None, None])
                    continue
                names = ("auroc_macro", "balanced_accuracy", "coverage")
                metrics = [sources.fact(SUMMARY, *spot, name) for name in names]
                lines.append([site, column, value, sources.fact(SUMMARY, *spot, "n"), *metrics])
    heading: Block = {"kind": "heading", "text": "Subgroups"}
    if not lines:
        said = "Subgroups: none were measured. Name columns of the sites' tables (dataset.subgroups), and run again."
        return [heading, missing(said)]
    columns = ["images of", "column", "value", "test images", "macro AUROC", "mean sensitivity", "coverage of sets"]
    return [heading, table("Metrics of subgroups; those of few images are kept back", columns, lines)]


def _told(sources: Sources) -> dict[str, tuple[str | int, ...]]:
    """Where the subgroups of each site stand; those of all sites together are left out, for the rest can be had."""
    summary = sources.tree(SUMMARY)
    sites = set(summary.get("sites") or {})
    told = summary.get("subgroups")
    if told:
        return {site: ("subgroups", site) for site in sorted(told) if site in sites}
    matrix = summary.get("matrix") or {}
    model = next((name for name in ("diffusion", "guidance", "plain") if name in matrix), "")
    cells = matrix.get(model) or {}
    return {s: ("matrix", model, s, "subgroups") for s in sorted(cells) if s in sites and cells[s].get("subgroups")}


def _tested(sources: Sources, site: str) -> int | None:
    for place in (("sites", site, "n_test"), ("sites", site, "test")):
        found = sources.at(SUMMARY, *place)
        if type(found) is int:
            return found
    return None


def sureness(sources: Sources, least: int = LEAST) -> dict[str, Any]:
    """Calibration, prediction sets and their coverage, and which uncertainty tells errors."""
    if not sources.tree(SUMMARY):
        return section("sureness", "Calibration and coverage", missing("The run's folder holds no summary.json."))
    blocks = [*_calibration(sources, least), *_coverage(sources, least), *_measures(sources, least)]
    return section("sureness", "Calibration and coverage", *blocks)


def _calibration(sources: Sources, least: int) -> list[Block]:
    fitted = _or_few(sources, not total_tells(sources, "val", least), "calibration", "n")
    rows = [["validation images that it was fitted on", fitted]] if fitted else []
    rows += named(
        sources,
        [
            ("scale of the score", SUMMARY, ("calibration", "scale")),
            ("weight of the class shares", SUMMARY, ("calibration", "prior_weight")),
            ("mean negative log-likelihood, nats", SUMMARY, ("calibration", "nll")),
            ("calibration error on all test images", SUMMARY, ("global", "test", "ece")),
            ("calibration error on the test images of one masked sum", SUMMARY, ("together", "ece")),
        ],
    )
    if not rows:
        said = "Calibration: the summary does not say how it was fitted; calibration errors are by site, above."
        return [missing(said)]
    edge = sources.at(SUMMARY, "calibration", "at_edge")
    warned = (
        [warning("The calibration ended at the edge of its grid: take the probabilities with care.")] if edge else []
    )
    return [table("Calibration of the probabilities", ["what", "value"], rows), *warned]


def _coverage(sources: Sources, least: int) -> list[Block]:
    summary = sources.tree(SUMMARY)
    known = summary.get("sureness") or {}
    if not known.get("rules"):
        return [missing("Prediction sets: this run has none, so there is no coverage to report.")]
    matrix = summary.get("matrix") or {}
    model = next((name for name in ("federated", "diffusion", "guidance", "plain") if name in matrix), "")
    sites: Sequence[str] = list(matrix.get(model) or {})
    lines, by_class = [], []
    classes = summary["classes"]
    for site in sites:
        for kind in KINDS:
            spot = ("matrix", model, site, "coverage", kind)
            if sources.at(SUMMARY, *spot) is None:
                continue
            size, level = sources.fact(SUMMARY, *spot, "size"), sources.fact(SUMMARY, *spot, "level")
            lines.append([site, kind, level, sources.fact(SUMMARY, *spot), size])
            positives = sources.at(SUMMARY, "matrix", model, site, "positives") or {}
            may = shown([positives.get(name) for name in classes], least)
            cells = [_or_few(sources, m, *spot, "classes", name) for name, m in zip(classes, may, strict=True)]
            by_class.append([site, kind, *cells])
    promise = (
        "A set promises to hold the true class at its level on average over images like those that its thresholds came "
        "from, all sites together: not at each site, not of each class unless its kind says by-class."
    )
    if not lines:
        return [text(promise), missing("Coverage on test images: no site told it.")]
    columns = ["images of", "sets", "promised", "test images whose set held the truth", "classes in a set"]
    return [
        text(promise),
        table("Coverage of prediction sets on test images", columns, lines),
        table("Coverage of each class", ["images of", "sets", *classes], by_class),
    ]


def _measures(sources: Sources, least: int) -> list[Block]:
    measures = sources.at(SUMMARY, "sureness", "measures") or []
    rows, counted = [], not total_tells(sources, "val", least)
    for place, one in enumerate(measures):
        spot = ("sureness", "measures", place)
        told = [sources.fact(SUMMARY, *spot, key) for key in ("measure", "auroc", "low", "high")]
        errors = counted and all(shown([one["errors"], one["n"] - one["errors"]], least))
        told += [_or_few(sources, counted, *spot, "n"), _or_few(sources, errors, *spot, "errors")]
        rows.append(told)
    if not rows:
        return [missing("Uncertainty of single images: no measure of it was tested on this run's validation images.")]
    columns = ["measure", "finds errors (AUROC)", "from", "to", "validation images", "errors among them"]
    return [table("Does an uncertainty tell errors? 0.5 is a coin", columns, rows)]
