"""The model card of a dossier, and the statement on the data of each site."""

from __future__ import annotations

from typing import Any

from fed_diffmic.release.dossier.counts import FEW, LEAST, count_facts, split_keys, subgroup_values
from fed_diffmic.release.dossier.facts import (
    CONFIG,
    MODEL,
    SUMMARY,
    Block,
    Sources,
    blank,
    listing,
    missing,
    named,
    section,
    table,
    text,
    warning,
)
from fed_diffmic.reporting.clinic import DOUBTFUL, USELESS, usefulness
from fed_diffmic.reporting.untested import NOT_SHOWN, untested

DEVICES = ("manufacturer", "model", "scanner", "device", "camera", "equipment")
YEARS = ("year", "period", "acquired")
KEPT_BACK = "Counts of few images are kept back, and others with them from which these could be had by subtraction."


def model_card(sources: Sources) -> dict[str, Any]:
    """What the model is, what it may be used for, and what nobody has shown."""
    spec = ("spec",)
    rows = named(
        sources,
        [
            ("run", MODEL, (*spec, "run_id")),
            ("data set", SUMMARY, ("dataset",)),
            ("modality", MODEL, (*spec, "modality")),
            ("task", MODEL, (*spec, "task")),
            ("classes", MODEL, (*spec, "classes")),
            ("side of an image, pixels", MODEL, (*spec, "model", "image_side")),
            ("model preset", MODEL, (*spec, "model", "name")),
            *([("head of the second network", MODEL, (*spec, "model", "denoiser"))] if _second(sources) else []),
            ("federated algorithm", MODEL, (*spec, "strategy", "name")),
            ("rule of decision", MODEL, (*spec, "stages", "decision")),
            ("seed", MODEL, (*spec, "seed")),
            ("signed by the key", MODEL, ("signed",)),
        ],
    )
    rows += [[f"weights of {stage}", sources.fact(MODEL, "digests", stage)] for stage in _stages(sources)]
    rows += [
        [f"rounds of {stage}, the one kept", sources.fact(MODEL, "history", last, "best_round")]
        for stage in _stages(sources)
        if (last := _last_row(sources, stage)) is not None
    ]
    summary = sources.tree(SUMMARY)
    return section(
        "model-card",
        "Model card",
        warning("For research. Not a medical device: nothing here may be used to diagnose or to treat a patient."),
        _verdict(summary),
        table("What it is", ["what", "value"], [row for row in rows if row[1] is not None and row[1]["value"] != ""]),
        _words(sources),
        blank("Intended purpose, intended users, patients and setting", "whoever would put the model to use"),
        text("What it was never tested on:"),
        listing(untested(summary) if summary else list(NOT_SHOWN)),
    )


def _second(sources: Sources) -> bool:
    """Whether a network stands behind the guidance network: with a diffusion head, or a classifier in its place."""
    return "diffusion" in _stages(sources)


def _stages(sources: Sources) -> list[str]:
    return sorted(sources.at(MODEL, "digests") or {})


def _last_row(sources: Sources, stage: str) -> int | None:
    history = sources.at(MODEL, "history") or []
    places = [place for place, row in enumerate(history) if row.get("stage") == stage and "best_round" in row]
    return places[-1] if places else None


def _verdict(summary: Any) -> Block:
    if not summary:
        return missing("How good it is cannot be said: the run's folder holds no summary.json.")
    level, _ = usefulness(summary)
    return {
        USELESS: warning(
            "This model is useless as it stands: it gives every test image the same answer, whatever is on it."
        ),
        DOUBTFUL: warning("Its decisions are not shown to be better than chance everywhere: see the evaluation."),
    }.get(level, text("How good it is, and where: see the evaluation."))


def _words(sources: Sources) -> Block | None:
    words = sources.at(SUMMARY, "class_names") or {}
    rows = [[name, sources.fact(SUMMARY, "class_names", name)] for name in words]
    return table("Classes in words", ["class", "in words"], rows) if rows else None


def data_statement(sources: Sources, least: int = LEAST) -> dict[str, Any]:
    """How many images each site has, of which classes, from which devices and years, as far as the run's files know."""
    sites = sorted(sources.at(SUMMARY, "sites") or {})
    if not sites:
        said = "The run's folder holds no summary.json, or it names no site: nothing is known of the sites' data."
        return section("data", "Data of each site", missing(said), _asked())
    blocks: list[Block] = [text(KEPT_BACK)]
    if sources.at(SUMMARY, "dataset") == "phantoms":
        blocks.append(warning("All images were drawn by a program. No patient stands behind any of these numbers."))
    blocks += [_images(sources, sites, least), _training(sources, sites, least)]
    for site in sites:
        blocks += _of_site(sources, site, least)
    blocks.append(_asked())
    return section("data", "Data of each site", *blocks)


def _images(sources: Sources, sites: list[str], least: int) -> Block:
    rows = []
    for site in sites:
        rows.append([site, *count_facts(sources, SUMMARY, ("sites", site), split_keys(sources, site), least)])
    return table("Images", ["site", "training", "validation", "test"], rows)


def _training(sources: Sources, sites: list[str], least: int) -> Block:
    classes = [str(name) for name in sources.at(SUMMARY, "classes") or ()]
    rows = []
    for site in sites:
        held = sources.at(SUMMARY, "sites", site, "class_counts") or {}
        keys: list[str | int] = list(range(len(classes))) if isinstance(held, list) else list(classes)
        rows.append([site, *count_facts(sources, SUMMARY, ("sites", site, "class_counts"), keys, least)])
    return table("Training images by class", ["site", *classes], rows)


def _of_site(sources: Sources, site: str, least: int) -> list[Block]:
    columns = sources.at(SUMMARY, "subgroups", site) or {}
    known: list[Block] = []
    unknown: list[str] = []
    for kind, names in (("Devices", DEVICES), ("Years", YEARS)):
        held = [column for column in columns if any(name in column.lower() for name in names)]
        rows = []
        for column in held:
            tested = sources.at(SUMMARY, "sites", site, split_keys(sources, site)[2])
            may = subgroup_values(columns[column], tested, least)
            for value in sorted(columns[column]):
                place = ("subgroups", site, column, value, "n")
                count = sources.fact(SUMMARY, *place) if value in may else sources.withheld(FEW, SUMMARY, *place)
                rows.append([column, value, count])
        if rows:
            known.append(table(f"{kind} at {site}, as its table says", ["column", "value", "test images"], rows))
        else:
            unknown.append(kind.lower())
    if unknown:
        asked = f"{' and '.join(unknown).capitalize()} of the images: the run's files do not say"
        known.append(blank(asked, f"the site {site}"))
    return known


def _asked() -> Block:
    return blank(
        "How images were chosen, who labelled them and how sure labels are, who was left out, legal basis of their use",
        "each site",
    )


def training_facts(sources: Sources) -> dict[str, Any]:
    """Under which settings it was trained."""
    rows = named(
        sources,
        [
            ("seed", CONFIG, ("seed",)),
            ("federated algorithm", CONFIG, ("strategy", "name")),
            ("weighting of the sites", CONFIG, ("strategy", "weighting")),
            ("partition (simulation)", CONFIG, ("partition", "name")),
            ("quorum, share of the sites", CONFIG, ("run", "quorum")),
            ("bytes sent, both ways", MODEL, ("bytes_sent",)),
            ("seconds", SUMMARY, ("seconds",)),
        ],
    )
    told = table("Training", ["what", "value"], rows) if rows else None
    lost = missing("The run's folder holds no config.yaml.") if sources.tree(CONFIG) is None else None
    return section("training", "How it was trained", told, lost)
