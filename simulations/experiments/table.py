"""The tidy table: one row for each figure of each cell, from the cells' own summaries and nothing else.

Columns: ``cell``, one for each axis, ``arm`` (``federated``, ``local``, ``pooled``, ...), ``site`` (a site, ``mean``
over sites, or ``all`` images together), ``split``, ``metric``, ``class`` (empty: over classes), ``value``, ``low``,
``high`` (95 % bootstrap interval), ``n`` images, ``positives`` of the class. A test set from elsewhere is a site called
``external: NAME`` of the split ``external``, with a row for each model. Times are not in it, so that the same
experiment run twice gives the same table, byte for byte.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fed_diffmic.files import atomic_write, read_json
from simulations.experiments.runner import CELLS, read_index

CSV = "results.csv"
PARQUET = "results.parquet"
PER_CLASS = ("auroc", "auprc", "sensitivity", "specificity", "f1")


def rows_of(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every figure of one run's summary."""
    for arm, block in methods_of(summary):
        places = {"all": block["global"], "mean": block["mean"], **block["sites"]}
        for site, splits in places.items():
            for split in ("val", "test"):
                yield from _metrics({"arm": arm, "site": site, "split": split}, splits.get(split, {}))
    for name, table in sorted((summary.get("external") or {}).items()):
        for model, metrics in table["models"].items():
            yield from _metrics({"arm": model, "site": f"external: {name}", "split": "external"}, metrics)
    yield {"arm": "federated", "site": "all", "metric": "bytes_sent", "value": float(summary["bytes_sent"])}


def methods_of(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each arm of a run with its ``global``, ``sites`` and ``mean``, the federation first."""
    yield "federated", summary

    def inner(prefix: str, blocks: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, block in sorted(blocks.items()):
            if "global" in block:
                yield prefix + name, block
            else:
                yield from inner(f"{prefix}{name}/", block)

    yield from inner("", summary["baselines"])


def _metrics(place: dict[str, Any], metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, cell in metrics.items():
        if metric == "per_class":
            for label, own in cell.items():
                for name in PER_CLASS:
                    if own.get(name) is not None:
                        low, high = (own.get("intervals") or {}).get(name) or (None, None)
                        facts = {"metric": name, "class": label, "value": own[name], "low": low, "high": high}
                        yield {**place, **facts, "n": own["n"], "positives": own["positives"]}
        elif isinstance(cell, Mapping) and cell.get("value") is not None:
            yield {**place, "metric": metric, **{name: cell.get(name) for name in ("value", "low", "high", "n")}}


def tidy_table(out: Path) -> pd.DataFrame:
    """The table of every finished cell of an experiment's folder.

    Raises:
        UsageError: it holds no experiment.
    """
    index = read_index(out)
    rows = []
    for cell in index["cells"]:
        path = out / CELLS / cell["name"] / "summary.json"
        if path.exists():
            place = {"cell": cell["name"], **cell["place"]}
            rows += [{**place, **row} for row in rows_of(read_json(path))]
    columns = [
        "cell",
        *index["axes"],
        "arm",
        "site",
        "split",
        "metric",
        "class",
        "value",
        "low",
        "high",
        "n",
        "positives",
    ]
    table = pd.DataFrame(rows, columns=columns)
    table[["split", "class"]] = table[["split", "class"]].fillna("")
    table[["n", "positives"]] = table[["n", "positives"]].astype("Int64")
    numbers = ["value", "low", "high"]
    table[numbers] = table[numbers].astype("float64")
    return table.sort_values(columns[:7], kind="stable", ignore_index=True)


def write_table(out: Path) -> tuple[pd.DataFrame, list[Path]]:
    """Write ``results.csv``, and ``results.parquet`` where pyarrow is installed (extra ``experiments``)."""
    table = tidy_table(out)
    written = [out / CSV]
    atomic_write(out / CSV, table.to_csv(index=False, lineterminator="\n").encode())
    if importlib.util.find_spec("pyarrow") is not None:
        stream = io.BytesIO()
        table.to_parquet(stream, index=False)
        atomic_write(out / PARQUET, stream.getvalue())
        written.append(out / PARQUET)
    return table, written
