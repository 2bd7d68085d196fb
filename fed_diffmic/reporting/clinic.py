"""The front page of a report, for a clinician: is it any use, at which operating points, and what was never tested.

The verdict has one rule, so that no run can choose its words. A model that gives every test image the same answer is
called useless, whatever its AUROC; one whose balanced accuracy is not shown to be above chance (the lower end of its
95 % interval) is called not better than chance. Nothing is ever called good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_diffmic.reporting import page
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.story import by_chance, single_class
from fed_diffmic.reporting.sureness import figure as cell_of
from fed_diffmic.reporting.untested import positives, tested, untested
from fed_diffmic.reporting.view import (
    DASH,
    FEDERATED,
    METRIC_NAMES,
    arms,
    chance,
    measured,
    number,
    with_interval,
    words_of,
)
from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY, LEAST_POSITIVES, SPECIFICITY
from fed_diffmic.training.pooled import pooled_points

USELESS, DOUBTFUL, ABOVE, UNKNOWN = "useless", "doubtful", "above", "unknown"
SAME = 1e-9
FEW_POOLED = 30
"""Fewer positives than this over all sites: a share of them moves by several per cent with each."""
Verdict = tuple[str, str]
"""One of the four words above, and a sentence."""


def same_answer(per_class: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The labels of which a model of several says the same for every image, of those that some images have."""
    found = []
    for name, cell in per_class.items():
        said = cell.get("sensitivity"), cell.get("specificity")
        if said in ((0.0, 1.0), (1.0, 0.0)):
            found.append(str(name))
    return found


def usefulness(summary: Mapping[str, Any]) -> Verdict:
    """What may be said of the model's decisions on test images, all sites together or, in a coordinator's run, each."""
    if not (summary.get("global") or {}).get("test"):
        return _by_site(summary)
    words = words_of(summary)
    only = single_class(summary)
    if only is not None:
        said = f"it calls every test image {words.get(only, only)}, whatever is on it"
        return USELESS, f"This model is useless as it stands: {said}."
    if summary["task"] == "multilabel":
        block = summary["global"]["test"].get("per_class") or {}
        stuck, there = same_answer(block), [name for name, cell in block.items() if _both(cell)]
        if stuck and set(stuck) >= set(there):
            return USELESS, "This model is useless as it stands: of each finding it says the same for every image."
        if stuck:
            named = ", ".join(words.get(name, name) for name in stuck)
            return DOUBTFUL, f"This model says nothing of {named}: its answer is the same for every image."
    doubt = by_chance(summary)
    if doubt:
        return DOUBTFUL, f"{doubt} Do not rely on its decisions."
    found = measured(arms(summary)[FEDERATED], "balanced_accuracy")
    known = chance("balanced_accuracy", summary["task"], len(found.get("classes") or []))
    if known is None or found["low"] is None:
        return UNKNOWN, "Whether its decisions are better than chance cannot be said: there is no interval."
    return ABOVE, (
        f"Its decisions are better than chance on these sites' test images: balanced accuracy {with_interval(found)}, "
        f"chance {number(known)}. That alone does not make it fit for any use."
    )


def _both(cell: Mapping[str, Any]) -> bool:
    return cell.get("sensitivity") is not None and cell.get("specificity") is not None


def _by_site(summary: Mapping[str, Any]) -> Verdict:
    """The verdict of a coordinator's run, from what sites let out: the worst that holds at any of them."""
    if summary.get("together"):
        return _of_sum(summary)
    same, doubtful, better = [], [], []
    for site, cell in tested(summary).items():
        found, held = cell.get("balanced_accuracy") or {}, cell.get("classes") or []
        known = chance("balanced_accuracy", summary["task"], len(held))
        if found.get("value") is None or known is None:
            continue
        if len(held) > 1 and abs(found["value"] - known) < SAME:
            same.append(site)
        elif found.get("low") is None or found["low"] <= known:
            doubtful.append(site)
        else:
            better.append(site)
    if same and not (doubtful or better):
        return USELESS, (
            f"This model is useless as it stands: at {', '.join(same)} its balanced accuracy is exactly what calling "
            "every image the same class reaches."
        )
    if same or doubtful:
        named = ", ".join(sorted([*same, *doubtful]))
        return DOUBTFUL, f"Not shown to be better than chance at {named}. Do not rely on its decisions there."
    if better:
        return ABOVE, (
            f"Its decisions are better than chance on test images of {', '.join(better)}. That alone does not make it "
            "fit for any use."
        )
    return (
        UNKNOWN,
        "Whether its decisions are better than chance cannot be said: no site told enough of its test images.",
    )


def _of_sum(summary: Mapping[str, Any]) -> Verdict:
    """The verdict where nobody sees what one site says: figures over all sites together have no interval."""
    found, counts = summary["together"]["balanced_accuracy"], positives(summary)
    known = chance("balanced_accuracy", summary["task"], sum(bool(count) for count in counts.values()))
    if found is not None and known is not None and abs(found - known) < SAME:
        return USELESS, (
            "This model is useless as it stands: over all sites' test images its balanced accuracy is exactly what "
            "calling every image the same class reaches."
        )
    if found is not None and known is not None and found < known:
        return DOUBTFUL, "Over all sites' test images its decisions are no better than chance. Do not rely on them."
    return UNKNOWN, (
        "Whether its decisions are better than chance cannot be said: figures over all sites together, of which nobody "
        "sees one site's, have no interval."
    )


def front_page(summary: Mapping[str, Any]) -> Html:
    """The first section of a report."""
    level, said = usefulness(summary)
    words = words_of(summary)
    names = [f"{words[name]} ({name})" if name in words else str(name) for name in summary["classes"]]
    knows = "It knows these classes and no others: " if summary["task"] != "multilabel" else "It answers for each of: "
    kind = "notice" if level in (USELESS, DOUBTFUL) else ""
    parts: list[object] = [page.paragraph(Html(f"<b>{page.text(said)}</b>"), kind)]
    parts.append(page.paragraph(f"{knows}{', '.join(names)}."))
    parts += _points(summary, words)
    items = "".join(f"<li>{page.text(point)}</li>" for point in untested(summary))
    parts.append(Html(f"<h3>What it was never tested on</h3><ul>{items}</ul>"))
    return page.section("For a clinician", *parts)


def _points(summary: Mapping[str, Any], words: Mapping[str, str]) -> list[object]:
    sites = not (summary.get("global") or {}).get("test")
    lines = _site_lines(summary) if sites else _class_lines(summary, words)
    if summary.get("together"):
        return _together(summary["together"], words)
    if not lines:
        return [page.paragraph("Operating points: not known of this run.", "soft")]
    own = pooled_points(tested(summary), summary["classes"]) if sites else {}
    least = 1 - SPECIFICITY
    guess = [page.stacked("chance", "a guess without looking"), "", number(least), number(least), number(0.5)]
    columns = ["images of" if sites else "class", "test images" if sites else "test images with it"]
    columns += [f"found at {SPECIFICITY:.0%} specificity (sensitivity)", f"cleared at {SPECIFICITY:.0%} sensitivity"]
    table = page.table([*columns, "AUROC"], [*lines, guess], caption="each class against the rest, 95 % interval below")
    said = (
        f"Read: if at most {least:.0%} of the images without a class may be called it, this share of those with it is "
        f"found; and if {SPECIFICITY:.0%} of those with it must be found, this share of those without it is rightly "
        "cleared (specificity). The cut is taken on the same images: one that is fixed beforehand does a little worse."
    )
    mean = " Here each figure is a mean over the classes that a site's images hold." if sites else ""
    return [table, page.paragraph(said + mean, "soft"), *_pooled(own, words)]


def _together(found: Mapping[str, Any], words: Mapping[str, str]) -> list[object]:
    """A masked run's table of classes: figures over the sites of the sum together, none of one site."""
    lines: list[list[object]] = []
    for name, cell in found["per_class"].items():
        count = page.stacked(str(cell["positives"]), "few: read with care" if cell["positives"] < FEW_POOLED else "")
        figures = (number(cell[key]) for key in (AT_SPECIFICITY, AT_SENSITIVITY, "auroc"))
        lines.append([words.get(name, name), count, *figures])
    columns = ["class", "test images with it", f"found at {SPECIFICITY:.0%} specificity"]
    table = page.table(
        [*columns, f"cleared at {SPECIFICITY:.0%} sensitivity", "AUROC"],
        lines,
        caption=f"each class against the rest, over {found['n']} test images of {', '.join(found['sites'])} together",
    )
    macro = ("balanced_accuracy", "accuracy", "auroc_macro", "ece")
    told = ", ".join(f"{METRIC_NAMES.get(name, name)} {number(found[name])}" for name in macro)
    said = (
        "Over all sites together: sites added counts of their test images under masks, nobody saw those of one site. "
        f"{told}. The AUROC takes images of probabilities within a quarter of log-odds as tied. No intervals: how "
        "images of one patient lie in the counts is not known. At a single site it may do better or worse."
    )
    return [table, page.paragraph(said, "soft")]


def _pooled(found: Mapping[str, Mapping[str, Any]], words: Mapping[str, str]) -> list[object]:
    """A coordinator's table of classes, over the sites that let their counts out."""
    if not found:
        return []
    lines: list[list[object]] = []
    for name, cell in found.items():
        count = page.stacked(str(cell["positives"]), "few: read with care" if cell["positives"] < FEW_POOLED else "")
        point = [cell_of(cell[AT_SPECIFICITY]), cell_of(cell[AT_SENSITIVITY])]
        lines.append([words.get(name, name), ", ".join(cell["sites"]), count, *point])
    columns = ["class", "sites that told it", "test images with it", f"found at {SPECIFICITY:.0%} specificity"]
    table = page.table(
        [*columns, f"cleared at {SPECIFICITY:.0%} sensitivity"],
        lines,
        caption="each class against the rest, over the test images of these sites together",
    )
    said = (
        "From counts of test images by their probability, which sites add; those of few images are moved to the side "
        "that promises less, so the true figures are as good or a little better. No interval: how images of one "
        "patient lie in the counts is not known. One cut for all: at a single site it finds more or less."
    )
    return [table, page.paragraph(said, "soft")]


def _class_lines(summary: Mapping[str, Any], words: Mapping[str, str]) -> list[list[object]]:
    known, counts = summary.get("operating_points") or {}, positives(summary)
    block = summary["global"]["test"].get("per_class") or {}
    lines = []
    for name in summary["classes"] if known else ():
        cell, count = known.get(name) or {}, counts.get(name)
        few = count is not None and 0 < count < LEAST_POSITIVES
        mark = "no test image" if count == 0 else "few: read with care" if few else ""
        under = ", ".join(part for part in (name if name in words else "", mark) if part)
        own = block.get(name) or {}
        low, high = (own.get("intervals") or {}).get("auroc") or (None, None)
        auroc = {"value": own.get("auroc"), "low": low, "high": high}
        row = [cell_of(cell.get(AT_SPECIFICITY)), cell_of(cell.get(AT_SENSITIVITY)), cell_of(auroc)]
        lines.append([page.stacked(words.get(name, name), under), DASH if count is None else count, *row])
    return lines


def _site_lines(summary: Mapping[str, Any]) -> list[list[object]]:
    lines: list[list[object]] = []
    for site, cell in tested(summary).items():
        row = [cell_of(cell.get(name)) for name in (AT_SPECIFICITY, AT_SENSITIVITY, "auroc_macro")]
        lines.append([site, cell["n"], *row])
    return lines
