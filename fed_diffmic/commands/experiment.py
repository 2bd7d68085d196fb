"""``fed-diffmic experiment``: many simulated runs as one table and one report; ``fed-diffmic strategies``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_parts import below
from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add

_ABOUT = """Many simulated runs that differ in named ways: seeds, strategies, partitions, any setting.

  fed-diffmic experiment list
  fed-diffmic experiment run ham10000-linear --out DIR dataset.root=DIR model.weights=FILE [--jobs 2]
  fed-diffmic experiment run my.yaml --out DIR axes.seed=1,2
  fed-diffmic experiment report DIR
  fed-diffmic experiment coverage DIR
  fed-diffmic experiment head head-ham10000 --out DIR dataset.root=DIR model.weights=FILE [--test]

A run that was killed is continued by the same command; what is finished is not run again; a cell that fails is named
and does not stop the others.
"""


def register(add: Add) -> None:
    """Add ``strategies``, ``experiment`` and the commands below it."""
    add("strategies", _strategies, "the federated algorithms, a line each")
    experiment = add("experiment", None, "many runs as one table and one report")
    experiment.description = _ABOUT
    add_below = below(experiment)
    add_below("list", _list, "the experiments that come with the package")
    about = "run the cells that have no metrics yet, and write table and report"
    for name, said in (("run", about), ("sweep", "the same as run")):
        run = add_below(name, _run, said)
        run.description = about
        run.add_argument("name", help="an experiment's name, or a file")
        run.add_argument(
            "--out", required=True, type=Path, metavar="DIR", help="folder of the experiment, new or begun"
        )
        run.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1); 0: as many as memory allows")
        run.add_argument(
            "settings", nargs="*", metavar="key=value", help="of every cell; axes.NAME=a,b narrows an axis"
        )
    about = "does the diffusion head earn its cost? Train and judge every method alike, on pooled images or by sites"
    head = add_below("head", _head, about)
    head.description = about
    head.add_argument("name", help="an experiment's name, or a file")
    head.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the experiment, new or begun")
    head.add_argument("--test", action="store_true", help="read the test images: once, when validation has decided")
    together = "train by the strategy over the sites; without: on all images in one place"
    head.add_argument("--federated", action="store_true", help=together)
    head.add_argument("settings", nargs="*", metavar="key=value", help="as of run")
    report = add_below("report", _report, "write table, comparisons and pictures again")
    report.add_argument("folder", type=Path, metavar="DIR", help="folder of the experiment")
    coverage = add_below("coverage", _coverage, "how often prediction sets held the truth: over all, by site and class")
    coverage.add_argument("folder", type=Path, metavar="DIR", help="folder of the experiment")
    coverage.add_argument("--level", type=float, default=0.9, help="that is promised: 0.8, 0.9, 0.95 or 0.99 (0.9)")


def _strategies(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.reference import option_notes, plugin_notes

    others, faults = plugin_notes("strategy")
    notes = option_notes("strategy") | others
    width = max(map(len, notes))
    for name, note in notes.items():
        print(f"{name:<{width}}  {note}")
    for fault in faults:
        print(fault)
    return 0


def _list(arguments: argparse.Namespace, hint: list[str]) -> int:
    from simulations.experiments.definition import shipped

    for name, about in shipped().items():
        print(f"{name}  {about}")
    return 0


def _run(arguments: argparse.Namespace, hint: list[str]) -> int:
    if not 0 <= arguments.jobs <= 1024:
        raise UsageError(f"--jobs {arguments.jobs} is not allowed; allowed: 0 to 1024")
    from simulations.experiments.definition import load_experiment

    experiment = load_experiment(arguments.name, arguments.settings)
    hint.append("the same command goes on where this one stopped")
    from simulations.experiments.gather import incomplete
    from simulations.experiments.report import write_experiment_report
    from simulations.experiments.runner import run_experiment

    outcome = run_experiment(experiment, arguments.out, jobs=arguments.jobs)
    for failure in dict.fromkeys(outcome.failed.values()):
        names = [name for name, why in outcome.failed.items() if why == failure]
        print(f"failed: {_listed(names)}: {failure.cause}\n  {failure.remedy}")
    print(f"{len(outcome.done)} of {len(experiment.cells)} cells have metrics")
    if outcome.done and (missing := incomplete(arguments.out)):
        print(f"no report: {missing}")
    elif outcome.done:
        for path in write_experiment_report(arguments.out):
            print(path)
    return 5 if outcome.failed else 0


def _listed(names: list[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _coverage(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.training.conformal import LEVELS

    if arguments.level not in LEVELS:
        known = ", ".join(f"{level:g}" for level in LEVELS)
        raise UsageError(f"--level {arguments.level:g} is not allowed", f"Give one of {known}.")
    from simulations.experiments.coverage import write_coverage

    for path in write_coverage(arguments.folder, arguments.level):
        print(path)
    return 0


def _head(arguments: argparse.Namespace, hint: list[str]) -> int:
    from simulations.experiments.definition import load_experiment

    experiment = load_experiment(arguments.name, arguments.settings)
    hint.append("the same command goes on where this one stopped")
    from simulations.experiments.head import run_head
    from simulations.experiments.head_report import write_head_report

    run_head(experiment, arguments.out, test=arguments.test, federated=arguments.federated)
    for path in write_head_report(arguments.out):
        print(path)
    return 0


def _report(arguments: argparse.Namespace, hint: list[str]) -> int:
    from simulations.experiments.report import write_experiment_report

    for path in write_experiment_report(arguments.folder):
        print(path)
    return 0
