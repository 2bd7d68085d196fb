"""The answer that an experiment's report opens with: did federating help, whom, by how much, which model, how sure.

The federation that is spoken of is the experiment's first method, whatever the others reach: picking the best of
several by their test metrics would make it look better than it is. What counts as shown is an interval that excludes
zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fed_diffmic.training.choice import Choice, choose_model
from simulations.experiments.compare import (
    LEAST_POSITIVES,
    MEAN,
    PERSONAL,
    REFERENCES,
    Difference,
    Section,
    differences,
    mean_of,
    ratio_of_means,
)
from simulations.experiments.elsewhere import Elsewhere

NAMES = {"balanced_accuracy": "balanced accuracy", "auroc_macro": "macro AUROC"}
RANKED = "auroc_macro"
STAR = "★"  # not an asterisk: two of those in a paragraph are italics to Markdown, and both vanish
COUNTED = (
    f"Metrics are means over the classes that count: at least {LEAST_POSITIVES} tested images with it and as many "
    "without. Rows with different classes are not comparable."
)


def gap_text(gap: Difference | None) -> str:
    """``+0.031 (+0.002 to +0.060) above★``; a star where it holds after Holm's correction too."""
    if gap is None:
        return "-"
    star = STAR if gap.outlasts else ""
    return f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}) {gap.verdict}{star}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    cells = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def answer(section: Section, elsewhere: Sequence[Elsewhere]) -> list[str]:
    """The lines of a section's answer; empty where it has no seeds or trained no local baseline."""
    methods = [name for name in section.methods if name not in REFERENCES]
    if not section.seeds or not methods or "local" not in section.methods:
        return []
    main = methods[0]
    lines = [f"**{_headline(section, main)}**", "", *_whom(section, main), ""]
    lines += _sites(section, main)
    if "pooled" in section.methods:
        lines += [_against_pooled(section, main), ""]
    lines += _personal(section, main)
    for found in elsewhere:
        lines += _elsewhere(found, main)
    others = [name for name in methods[1:] if ": " not in name]
    if others:
        lines += _others(section, others)
    return [*lines, _how_sure(section), ""]


def _headline(section: Section, main: str) -> str:
    gaps = {metric: differences(section, "local", metric).get((main, MEAN)) for metric in NAMES}
    said = {metric: gap.verdict for metric, gap in gaps.items() if gap is not None}
    amounts = ", ".join(
        f"{NAMES[metric]} {'undefined: too few test images' if gap is None else gap_text(gap)}"
        for metric, gap in gaps.items()
    )
    if not said:
        return "Whether federating helped cannot be said: too few seeds or test images."
    if len(said) < len(NAMES):
        [(metric, verdict)] = said.items()
        words = {"above": "helped", "below": "made it worse", "not shown": "made no difference that is shown"}
        opening = f"In {NAMES[metric]} alone, as a mean over the sites' own patients, federating {words[verdict]}"
    elif set(said.values()) == {"above"}:
        opening = "Federating helped, as a mean over the sites' own patients"
    elif set(said.values()) == {"below"}:
        opening = "Federating made it worse, as a mean over the sites' own patients"
    elif "above" in said.values() and "below" in said.values():
        opening = "Federating helped by one metric and harmed by the other, as a mean over the sites' own patients"
    elif "above" in said.values():
        which = next(NAMES[metric] for metric, verdict in said.items() if verdict == "above")
        opening = (
            f"Federating helped in {which} as a mean over the sites' own patients; the other metric decides nothing"
        )
    elif "below" in said.values():
        which = next(NAMES[metric] for metric, verdict in said.items() if verdict == "below")
        opening = f"Federating made {which} worse as a mean over the sites' own patients; the other decides nothing"
    else:
        opening = "No difference between federating and training alone is shown on the sites' own patients"
    return f"{opening} ({main} minus each site alone: {amounts})."


def _whom(section: Section, main: str) -> Iterator[str]:
    words = {"above": "better off", "below": "worse off", "not shown": "not shown", "undefined": "undefined"}
    for metric, name in NAMES.items():
        said = _verdicts(section, main, metric)
        yield f"- {name}: " + "; ".join(f"{words[v]}: {', '.join(said[v])}" for v in words if v in said) + "."


def _verdicts(section: Section, model: str, metric: str) -> dict[str, list[str]]:
    """Sites by what is shown of a model against their own."""
    found = differences(section, "local", metric)
    said: dict[str, list[str]] = {}
    for site in sorted(section.judged):
        gap = found.get((model, site))
        said.setdefault(gap.verdict if gap is not None else "undefined", []).append(site)
    return said


def take(section: Section, main: str, site: str) -> Choice:
    """The model that a site should take, by :func:`fed_diffmic.training.choice.choose_model` on macro AUROC."""

    def gap(first: str, second: str) -> Mapping[str, Any]:
        found = differences(section, second, RANKED).get((first, site))
        if found is None and second == main:
            turned = differences(section, first, RANKED).get((main, site))
            return {} if turned is None else {"value": -turned.mean, "low": -turned.high, "high": -turned.low}
        return {} if found is None else {"value": found.mean, "low": found.low, "high": found.high}

    return choose_model([main, "local", *_own(section, main)], gap)


def _own(section: Section, main: str) -> list[str]:
    """What sites made of a federation's model on their own images."""
    return [f"{main}: {kind}" for kind in PERSONAL if f"{main}: {kind}" in section.methods]


def _sites(section: Section, main: str) -> list[str]:
    models = ["local", main, *_own(section, main), *(name for name in ("pooled",) if name in section.methods)]
    metrics = [f"{name}, macro AUROC" for name in models]
    head = ["site", "tested images", "classes that count", *metrics, f"{main} minus local", "take"]
    found = differences(section, "local", RANKED)
    rows = []
    for site in [*sorted(section.judged), MEAN]:
        values = [mean_of(section.values[name, site, RANKED]) for name in models]
        images = sum(section.images.values()) if site == MEAN else section.images.get(site, 0)
        shown = ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
        rows.append(
            [
                site,
                f"{images:,}" if images else "-",
                "" if site == MEAN else counted([section.classes[c] for c in section.judged[site]], section.classes),
                *shown,
                gap_text(found.get((main, site))),
                "" if site == MEAN else take(section, main, site).model,
            ]
        )
    rule = (
        f"*Take*: {main} unless another model is shown to be better on the site's own patients in macro AUROC (chosen "
        "by these images, so its metric here is a little too good)."
    )
    return [*table(head, rows), COUNTED, "", rule, ""]


def counted(names: Sequence[str], of: Sequence[str]) -> str:
    """``2 of 7: mel, nv``: which classes count; without names where they are more than three."""
    told = f": {', '.join(names)}" if 0 < len(names) <= 3 else ""
    return f"{len(names)} of {len(of)}{told}"


def _against_pooled(section: Section, main: str) -> str:
    parts = []
    for metric, name in NAMES.items():
        gap = differences(section, "pooled", metric).get((main, MEAN))
        parts.append(f"{name} {_of_pooled(section, main, metric)} of pooled's ({gap_text(gap)})")
    return f"Against one model of all images in one place, mean over sites: {'; '.join(parts)}."


def _of_pooled(section: Section, model: str, metric: str) -> str:
    """A model's mean over sites as a part of pooled's; ``-`` where either is undefined."""
    if "pooled" not in section.methods:
        return "-"
    found = ratio_of_means(*(section.values[arm, MEAN, metric] for arm in (model, "pooled")))
    return "-" if math.isnan(found) else f"{found:.3f}"


def _personal(section: Section, main: str) -> list[str]:
    """The federation's model made a site's own, against training alone and against pooled; none where none was made."""
    rows = []
    for model in _own(section, main):
        for metric, name in NAMES.items():
            said = _verdicts(section, model, metric)
            gap = differences(section, "local", metric).get((model, MEAN))
            sites = [", ".join(said.get(verdict, [])) or "none" for verdict in ("above", "below")]
            rows.append([model, name, gap_text(gap), *sites, _of_pooled(section, model, metric)])
    if not rows:
        return []
    head = ["made a site's own", "metric", "minus local, mean over sites", "better off than alone", "worse off"]
    return ["The same model made each site's own:", "", *table([*head, "of pooled's"], rows)]


def _elsewhere(found: Elsewhere, main: str) -> list[str]:
    lines = [
        f"On patients from elsewhere ({found.name}: {found.images:,} images, {found.groups:,} groups; classes that "
        f"count: {', '.join(found.classes) or 'none'}):",
        "",
    ]
    rows = []
    for model in dict.fromkeys(model for model, _ in found.values):
        cells = [f"{mean_of(found.values[model, metric]):.3f}" for metric in NAMES]
        gaps = [gap_text(found.gaps.get((main, model, metric))) for metric in NAMES]
        rows.append([model, *cells, *gaps])
    head = ["model", *NAMES.values(), *(f"{main} minus it, {name}" for name in NAMES.values())]
    over = "over seeds" if len(found.seeds) > 1 else "not over seeds: what another training would change is not in them"
    rule = f"Intervals of 95 % over its patients or lesions (DeLong's variance; bootstrap) and {over}; each for itself."
    return [*lines, *table(head, rows), rule, ""]


def _others(section: Section, others: Sequence[str]) -> list[str]:
    rows = [
        [name, *(gap_text(differences(section, "local", metric).get((name, MEAN))) for metric in NAMES)]
        for name in others
    ]
    return table(["other methods minus local, mean over sites", *NAMES.values()], rows)


def _how_sure(section: Section) -> str:
    seeds = f"{len(section.seeds)} seed(s) ({', '.join(section.seeds)})"
    if not section.folds:
        return (
            f"How sure: {seeds}; each draws other test images of the same data. Intervals of 95 % on the sites' own "
            "patients, corrected for the overlap (Nadeau and Bengio 2003)."
        )
    missing = " With one seed what another training would change is not in them." if len(section.seeds) == 1 else ""
    if section.drawn_anew:
        missing += " Each seed draws its sites anew: a site's name stands for other images in each, and the numbers of "
        missing += "images are those of the first."
    return (
        f"How sure: every image was a test image once ({section.folds} folds, {seeds} as repeats of the whole). "
        "Intervals of 95 % over patients or lesions (macro AUROC: DeLong's variance; balanced accuracy: bootstrap) and "
        "over seeds; each holds for itself, so of twenty without any true difference one looks like one; a "
        f"{STAR} holds for all comparisons of its kind together (Holm's correction).{missing}"
    )
