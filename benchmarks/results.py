"""Print finished runs as the Markdown of docs/results.md: every figure there comes from a run's summary.

python benchmarks/results.py RUN_DIR [RUN_DIR ...]
python benchmarks/results.py --rounds STAGE RUN_DIR ...   # validation metrics by round, finished or not
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fed_diffmic.config.compose import compose
from fed_diffmic.reporting.events import read_events

METRICS = ("balanced_accuracy", "auroc_macro")
TITLES = ("balanced accuracy", "macro AUROC")
NAMES = {
    "federated": "DiffMIC-v2, federated",
    "local": "DiffMIC-v2, each site alone",
    "pooled": "DiffMIC-v2, pooled",
    "guidance/federated": "its guidance network alone, federated",
    "guidance/local": "its guidance network alone, each site alone",
    "guidance/pooled": "its guidance network alone, pooled",
    "plain/federated": "plain classifier, federated",
    "plain/local": "plain classifier, each site alone",
    "plain/pooled": "plain classifier, pooled",
}


def number(cell: dict[str, Any] | None) -> str:
    """``0.812 (0.790 to 0.833)``, or a dash where the figure is not defined."""
    if cell is None or cell.get("value") is None:
        return "-"
    interval = "" if cell.get("low") is None else f" ({cell['low']:.3f} to {cell['high']:.3f})"
    return f"{cell['value']:.3f}{interval}"


def row(*cells: str) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def methods(summary: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method of a run with its ``global``, ``sites`` and ``mean``."""
    yield "federated", summary
    for name, block in summary["baselines"].items():
        if "global" in block:
            yield name, block
        else:
            yield from ((f"{name}/{inner}", part) for inner, part in block.items())


def table(summary: dict[str, Any]) -> list[str]:
    """One row a method: mean over sites and union of the test images, with 95 % intervals."""
    rows = [
        row("model", *(f"{place}: {metric}" for place in ("mean over sites", "all test images") for metric in TITLES)),
        "|---|---|---|---|---|",
    ]
    for name, block in methods(summary):
        cells = [number(block[place]["test"][metric]) for place in ("mean", "global") for metric in METRICS]
        rows.append(row(NAMES.get(name, name), *cells))
    return rows


def differences(summary: dict[str, Any]) -> list[str]:
    """Paired differences, federated minus each other method, as the mean over sites."""
    rows = ["| federated minus | balanced accuracy | macro AUROC |", "|---|---|---|"]
    for name, block in summary["differences"].items():
        rows.append(row(NAMES.get(name, name), *(number(block["mean"][m]) for m in METRICS)))
    return rows


def sites(summary: dict[str, Any]) -> list[str]:
    """Test macro AUROC at each site for the three ways of training, with the number of images."""
    known = dict(methods(summary))
    shown = [name for name in ("federated", "local", "pooled") if name in known]
    rows = [
        "| site (train / test images) | " + " | ".join(f"macro AUROC, {name}" for name in shown) + " |",
        "|---|" + "---|" * len(shown),
    ]
    for site, facts in summary["sites"].items():
        cells = [number(known[name]["sites"][site]["test"]["auroc_macro"]) for name in shown]
        rows.append(row(f"{site} ({facts['n_train']} / {facts['n_test']})", *cells))
    return rows


def rounds(runs: list[Path], stage: str) -> list[str]:
    """The federation's validation metrics in the last round of each quarter of a stage: plain means over the sites."""
    rows = [
        "| sites weighed by | passes of a round | round | balanced accuracy | macro AUROC | loss |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        config = compose(run / "config.yaml", [])
        total = getattr(config.stages, stage).rounds
        for event in read_events(run / "events.jsonl"):
            if (event["kind"], event.get("arm"), event.get("stage")) != ("round_done", "federated", stage):
                continue
            if event["round"] * 4 % total < 4:
                metrics = event["val"].values()
                cells = [statistics.mean(f[m] for f in metrics if m in f) for m in METRICS]
                place = (config.strategy.weighting, f"{getattr(config.stages, stage).epochs:g}", str(event["round"]))
                rows.append(row(*place, *(f"{c:.3f}" for c in [*cells, event["mean"]["loss"]])))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rounds", metavar="STAGE")
    arguments = parser.parse_args()
    if arguments.rounds:
        print("\n".join(rounds(arguments.runs, arguments.rounds)))
        return
    for run in arguments.runs:
        summary = json.loads((run / "summary.json").read_text())
        megabytes = summary["bytes_sent"] / 1e6
        seed, minutes = summary["seed"], summary["seconds"] / 60
        print(f"Seed {seed}; {minutes:.0f} minutes; {megabytes:.0f} MB sent by the federation.\n")
        for block in (table(summary), differences(summary), sites(summary)):
            print("\n".join(block) + "\n")


if __name__ == "__main__":
    main()
