"""Test sets from elsewhere in a report: apart from the sites' own, because nobody trained on their patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_diffmic.reporting import page
from fed_diffmic.reporting.page import Html
from fed_diffmic.reporting.view import DASH, METRIC_NAMES, arm_name, number


def _cell(entry: Mapping[str, Any] | None, *, sign: bool = False) -> Html:
    if entry is None or entry.get("value") is None:
        return Html(DASH)
    low, high = (number(entry.get(key), sign=sign) for key in ("low", "high"))
    return page.stacked(number(entry["value"], sign=sign), "" if entry.get("low") is None else f"{low} to {high}")


def external_section(summary: Mapping[str, Any], metrics: tuple[str, ...]) -> Html:
    """Every model on every test set from elsewhere, with the paired difference to the federated one; or nothing.

    Args:
        summary: of the run.
        metrics: that are shown; the difference is that of the first.
    """
    parts: list[object] = []
    for name, table in sorted((summary.get("external") or {}).items()):
        parts.append(Html(f"<h3>{page.text(name)}</h3>"))
        said = f"{table['n']} images of {table['groups']} patients or lesions, read once, when everything was chosen."
        if table["absent"]:
            said += (
                f" It holds no image of {', '.join(table['absent'])}: metrics over classes are means over "
                f"{', '.join(table['present'])}, and are not comparable with those of the sites."
            )
        parts.append(page.paragraph(said))
        rows = []
        for model, values in table["models"].items():
            cells = [_cell(values[metric]) for metric in metrics]
            gap = (table["differences"].get(model) or {}).get(metrics[0])
            rows.append([arm_name(model), *cells, _cell(gap, sign=True)])
        columns = [
            "model",
            *(METRIC_NAMES[metric] for metric in metrics),
            f"federated minus it, {METRIC_NAMES[metrics[0]]}",
        ]
        parts.append(page.table(columns, rows, caption="95 % interval below"))
    return page.section("Patients from elsewhere", *parts) if parts else Html("")
