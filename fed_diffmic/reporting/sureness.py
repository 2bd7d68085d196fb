"""The report's section on how sure the model is: prediction sets and how often they held the truth, which uncertainty
tells errors, what referring buys, and how good the model is for subgroups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_diffmic.reporting import page
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.view import DASH, METRIC_NAMES, number, plain_names

_KINDS = {
    "lac-by-class": "promised for each class (lac)",
    "aps-by-class": "promised for each class (aps)",
    "lac": "promised over all images (lac)",
    "aps": "promised over all images (aps)",
}


def figure(cell: Mapping[str, Any] | None) -> object:
    """A value with its interval below; a dash where there is none."""
    if not cell or cell.get("value") is None:
        return DASH
    return page.stacked(
        number(cell["value"]), "" if cell.get("low") is None else f"{number(cell['low'])} to {number(cell['high'])}"
    )


def sureness_section(summary: Mapping[str, Any], row: Mapping[str, Mapping[str, Any]]) -> Html:
    """How sure the model is; empty where nothing is known of it.

    Args:
        summary: its ``sureness`` (:class:`fed_diffmic.training.sureness.Sureness` as JSON) and ``subgroups``.
        row: the model's cells of the cross-site matrix, by site.
    """
    known = summary.get("sureness")
    parts = [*_sets(known, row, summary["classes"]), *_measures(known)] if known else []
    parts += _subgroups(summary.get("subgroups") or _told(row))
    return page.section("How sure", *parts) if parts else Html("")


def _told(row: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {site: cell["subgroups"] for site, cell in row.items() if cell.get("subgroups")}


def _sets(known: Mapping[str, Any], row: Mapping[str, Mapping[str, Any]], classes: list[str]) -> list[Html]:
    if not known["rules"]:
        return [page.paragraph("There are no prediction sets: no site told how its validation images scored.", "soft")]
    silent = f" Nothing is promised for {', '.join(known['silent'])}, who told nothing." if known["silent"] else ""
    said = (
        "A prediction set names the classes that an image may have; `fed-diffmic predict` shows it. Its thresholds "
        f"come from {known['n']} validation images of {', '.join(known['sites'])}, counted at the sites. The promise "
        f"holds on average over images like theirs together, not at each site.{silent}"
    )
    lines, by_class = [], []
    for site, cell in row.items():
        told = cell.get("coverage") or {}
        for kind, found in ((kind, told[kind]) for kind in _KINDS if kind in told):
            name = [site, _KINDS[kind], f"{found['level']:.0%}", figure(found), number(found.get("size"))]
            lines.append([*name, cell.get("n", DASH)])
            by_class.append([site, _KINDS[kind], *(figure(found["classes"].get(c)) for c in classes)])
    parts = [page.paragraph(said)]
    if lines:
        columns = ["images of", "sets", "level", "test images whose set held the truth", "classes in a set", "n"]
        caption = "Coverage on test images, exact 95 % interval below, widened for images of one patient."
        parts.append(page.table(columns, lines, caption=caption))
        plain = plain_names(classes)
        heads = [page.stacked(c, plain[c]) if c in plain else c for c in classes]
        table = page.table(["images of", "sets", *heads], by_class)
        note = (
            "Sets promised over all images may never hold a rare class and keep their promise; `predict` shows those "
            "that are promised for each class, in which a class of too few validation images always is."
        )
        parts.append(page.details("Coverage of each class", table, page.paragraph(note, "soft")))
    return parts


def _measures(known: Mapping[str, Any]) -> list[Html]:
    measures = known["measures"]
    if not measures:
        return []
    lines, points, offered = [], [], []
    for m in measures:
        good = m["low"] is not None and m["low"] > 0.5 and 10 <= m["errors"] <= m["n"] - 10
        found = {"value": m["auroc"], "low": m["low"], "high": m["high"]}
        lines.append([m["measure"], figure(found), number(m["aurc"]), m["n"], m["errors"], "yes" if good else "no"])
        if good:
            offered.append(m["measure"])
            for p in m["referrals"]:
                risk = {"value": p["risk"], "low": p["low"], "high": p["high"]}
                points.append([m["measure"], f"{p['share']:.0%}", f"{p['referred']:.1%}", p["kept"], figure(risk)])
    said = (
        "Does an uncertainty tell wrong predictions from right ones? Measured on validation images: 0.5 is a coin. One "
        "is shown with predictions only if its whole interval lies above 0.5 and ten errors or more were there."
    )
    columns = ["measure", "finds errors (AUROC)", "area under risk-coverage", "n", "errors", "shown"]
    parts = [page.paragraph(said), page.table(columns, lines)]
    if points:
        heads = ["by", "refer at most", "referred", "images left", "wrong among these"]
        parts.append(page.details("What referring the most uncertain buys", page.table(heads, points)))
    elif not offered:
        parts.append(page.paragraph("None is shown, and no image can be referred by one.", "notice"))
    return parts


def _subgroups(told: Mapping[str, Any]) -> list[Html]:
    lines = []
    for site, columns in told.items():
        for column, values in columns.items():
            for value, cell in values.items():
                if cell["n"] is None:
                    lines.append([site, column, value, "few: kept back", DASH, DASH, DASH])
                    continue
                metrics = [figure(cell.get(name)) for name in ("auroc_macro", "balanced_accuracy", "coverage")]
                lines.append([site, column, value, cell["n"], *metrics])
    if not lines:
        return []
    columns_ = ["images of", "column", "value", "n", METRIC_NAMES["auroc_macro"], "mean sensitivity", "coverage"]
    note = (
        "Metrics of small groups differ by chance; macro metrics are means over the classes that a group's images "
        "hold, which may be others."
    )
    return [Html("<h3>Subgroups</h3>"), page.table(columns_, lines), page.paragraph(note, "soft")]
