"""What a model was never tested on: what holds for every model, and what a run's own files show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_diffmic.reporting.view import DASH, words_of
from fed_diffmic.training.matrix import LEAST_POSITIVES

NOT_SHOWN = (
    "whether it helps anybody's care: it was never tried in one",
    "how it does on images of another scanner, hospital, country or year than those it was trained and tested on",
    "how it does on images that show none of its classes: it always names one of them"
    " (of several labels: says something of each)",
)
MOST_NAMED = 8


def positives(summary: Mapping[str, Any]) -> dict[str, int | None]:
    """Test images of each class, all sites together; none where a site kept a count back, or nobody counted."""
    block = ((summary.get("global") or {}).get("test") or {}).get("per_class")
    classes = [str(name) for name in summary["classes"]]
    if block:
        return {name: int(block[name]["positives"]) for name in classes if name in block}
    cells = tested(summary)
    if summary.get("together"):
        return {name: int(cell["positives"]) for name, cell in summary["together"]["per_class"].items()}
    if not cells:
        return dict.fromkeys(classes)
    found: dict[str, int | None] = {}
    for name in classes:
        counts = [(cell.get("positives") or {}).get(name) for cell in cells.values()]
        found[name] = None if None in counts else sum(int(count) for count in counts if count is not None)
    return found


def row_of(summary: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The cells of the model itself in the cross-site matrix, by site: a simulation's federation, else the last stage
    that a coordinator's run has."""
    matrix = summary.get("matrix") or {}
    name = next((name for name in ("federated", "diffusion", "guidance", "plain") if name in matrix), None)
    row: Mapping[str, Mapping[str, Any]] = matrix[name] if name else {}
    return {site: cell for site, cell in row.items() if site in (summary.get("sites") or {})}


def tested(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The model's cells at the sites that said something of their test images."""
    return {site: cell for site, cell in sorted(row_of(summary).items()) if cell.get("n")}


def untested(summary: Mapping[str, Any]) -> list[str]:
    """What the model was never tested on, a sentence part each.

    Args:
        summary: of a run, simulated or a coordinator's.
    """
    points = []
    if summary.get("dataset") == "phantoms":
        points.append("any patient: a program drew its images")
    points += [_places(summary), *_few(summary)]
    among = (summary.get("together") or {}).get("sites", ())
    silent = sorted(set(summary.get("sites") or {}) - {*tested(summary), *among}) if row_of(summary) or among else []
    if silent:
        points.append(f"test images of {_named(silent)}: nothing was said of them")
    points.append(_groups(summary))
    return [*points, *NOT_SHOWN]


def _named(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{', '.join(names[:MOST_NAMED])} and others"


def _places(summary: Mapping[str, Any]) -> str:
    among = (summary.get("together") or {}).get("sites", ())
    known = sorted({*tested(summary), *among}) or sorted(summary.get("sites") or {})
    elsewhere = sorted(summary.get("external") or {})
    also = f" and from elsewhere ({_named(elsewhere)})" if elsewhere else ""
    return f"patients of any site but {_named(known) or DASH}{also}"


def _few(summary: Mapping[str, Any]) -> list[str]:
    words = words_of(summary)
    counts = positives(summary)
    absent = [words.get(name, name) for name, n in counts.items() if n == 0]
    few = [words.get(name, name) for name, n in counts.items() if n is not None and 0 < n < LEAST_POSITIVES]
    said = [f"classes that no test image showed: {', '.join(absent)}"] if absent else []
    return [*said, f"classes that fewer than {LEAST_POSITIVES} test images showed: {', '.join(few)}"] if few else said


def _groups(summary: Mapping[str, Any]) -> str:
    told = summary.get("subgroups") or {site: cell.get("subgroups") or {} for site, cell in tested(summary).items()}
    columns = sorted({column for by_column in told.values() for column in by_column})
    if not columns:
        return "whether it is as good for women as for men, for the young as for the old, on every device: nobody asked"
    return f"groups of patients other than by {_named(columns)}"
