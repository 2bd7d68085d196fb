"""Run an experiment's cells: what is done is not done again, what was interrupted goes on, what failed is named.

Several processes may work on one experiment at once (``--jobs``, or the command started twice, on one machine or on
several that share the folder): each takes a cell by its lock. A cell is a run of its own, with its checkpoints, so a
killed worker loses the round that it was in.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from fed_diffmic.config.checks import check_start
from fed_diffmic.config.compose import compose, to_yaml
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import DataError, FedDiffmicError, MachineError, ModelFileError, UsageError
from fed_diffmic.files import atomic_write, read_json, write_json
from simulations.experiments.definition import Cell, Experiment

CELLS = "cells"
INDEX = "experiment.json"
FAILED = "failed.json"
TODO = "todo.json"
DEFECT = "defect"
MIB_A_WORKER = 4096


@dataclass(frozen=True)
class Failure:
    """Why a cell has no metrics.

    Attributes:
        cause: in words.
        remedy: what to do.
    """

    cause: str
    remedy: str


@dataclass(frozen=True)
class Outcome:
    """What came of a pass over the cells.

    Attributes:
        done: cells with metrics, whoever made them.
        failed: why the others have none, by cell.
    """

    done: tuple[str, ...]
    failed: dict[str, Failure]


def prepare(experiment: Experiment, out: Path) -> None:
    """Write down what the cells are; cells of an earlier definition that are not part of this one stay.

    Raises:
        UsageError: a cell was begun with other settings.
        MachineError: the folder cannot be written.
    """
    try:
        (out / CELLS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{out} cannot be made: {error.strerror}", "Choose a folder you may write to.") from error
    before = {cell["name"]: cell for cell in read_index(out)["cells"]} if (out / INDEX).exists() else {}
    for cell in experiment.cells:
        known = before.get(cell.name)
        if known is not None and known["digest"] != cell.digest and (out / CELLS / cell.name / "config.yaml").exists():
            raise UsageError(
                f"{out}: the cell {cell.name} was begun with other settings",
                "Choose another --out for this experiment.",
            )
    now = {
        cell.name: {"name": cell.name, "place": dict(cell.place), "digest": cell.digest} for cell in experiment.cells
    }
    index = {"experiment": experiment.name, "about": experiment.about, "axes": list(experiment.axes)}
    write_json(out / INDEX, {**index, "cells": list({**before, **now}.values())})
    for cell in experiment.cells:
        folder = out / CELLS / cell.name
        folder.mkdir(exist_ok=True)
        run = replace(cell.config.run, dir=str(folder.resolve()))
        config = replace(cell.config, run=run)
        if config.dataset.name == "phantoms" and config.dataset.root is None:  # drawn once for all cells
            drawn = f"phantoms-{config.dataset.modality}-{config.dataset.phantom_images}"
            config = replace(config, dataset=replace(config.dataset, root=str((out / drawn).resolve())))
        atomic_write(folder / "cell.yaml", to_yaml(config).encode())


def check_machine(cells: Sequence[Cell], out: Path) -> None:
    """Refuse at once what would let every cell fail before it began, rather than say it once a cell.

    Raises:
        ConfigError: the first cell's, where no cell was begun and none could be.
    """
    refused: FedDiffmicError | None = None
    for cell in cells:
        if (out / CELLS / cell.name / "config.yaml").exists():
            return
        try:
            check_start(cell.config, resume=False)
        except FedDiffmicError as error:
            refused = refused or error
        else:
            return
    if refused is not None:
        raise refused


def read_index(out: Path) -> dict[str, Any]:
    """The cells of an experiment's folder.

    Raises:
        UsageError: it is not one.
    """
    try:
        return dict(read_json(out / INDEX))
    except (ModelFileError, TypeError, ValueError) as error:
        raise UsageError(
            f"{out} holds no experiment", "Give the folder of `fed-diffmic experiment run --out`."
        ) from error


def run_experiment(experiment: Experiment, out: Path, *, jobs: int = 1) -> Outcome:
    """Run every cell that has no metrics yet.

    Args:
        out: the experiment's folder.
        jobs: processes; 0: as many as processors and memory allow (4 GiB each).

    Raises:
        ConfigError: see :func:`check_machine`.
        UsageError, MachineError: see :func:`prepare`.
    """
    check_machine(experiment.cells, out)
    prepare(experiment, out)
    names = [cell.name for cell in experiment.cells]
    count = min(jobs or affordable(), len(names))
    if count > 1:
        run_workers(out, names, count)
    else:
        work(out, names, sys.stdout)
    return outcome(out, names)


def affordable() -> int:
    """Processes that the processors and the free memory allow, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable"))
        return max(1, min(cores, free // MIB_A_WORKER))
    return max(1, cores)


def run_workers(out: Path, names: list[str], count: int) -> None:
    """Let ``count`` processes of our own work on the cells, until all have ended."""
    from fed_diffmic.transport.processes import child_env, start_child

    logs = out / "workers"
    logs.mkdir(exist_ok=True)
    write_json(logs / TODO, {"cells": names})
    env = child_env(logs / "flower")
    children = [
        start_child("simulations.experiments.worker", [str(out.resolve())], env=env, log=logs / f"{number}.log")
        for number in range(count)
    ]
    try:
        while any(child.poll() is None for child in children):
            for child in children:
                child.wait(1.0)
    finally:
        for child in children:
            child.terminate()


def work(out: Path, names: list[str], say: TextIO) -> None:
    """Take one cell after another until none is left that is neither done nor another process's."""
    for position, name in enumerate(names, start=1):
        folder = out / CELLS / name
        if (folder / "summary.json").exists():
            continue
        try:
            with FileLock(folder / "lock", timeout=0):
                if (folder / "summary.json").exists():
                    continue
                print(f"[{position}/{len(names)}] {name}", file=say, flush=True)
                failure = run_cell(folder)
                if failure:
                    print(f"[{position}/{len(names)}] {name} failed: {failure}", file=say, flush=True)
        except Timeout:
            continue


def run_cell(folder: Path) -> str:
    """Run, or continue, one cell; why it failed, or nothing."""
    from simulations.run import simulate

    (folder / FAILED).unlink(missing_ok=True)
    try:
        config = compose(folder / "cell.yaml", [])
        resume = (folder / "config.yaml").exists()
        check_start(config, resume=resume) if resume else check_fresh(folder)
        with (
            (folder / "log.txt").open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            if not resume:
                hold_to_begun(folder, config)
            simulate(config, resume=resume)
        return ""
    except FedDiffmicError as error:
        failure = {"code": error.code, "cause": error.cause, "remedy": error.remedy}
    except Exception as error:
        failure = {"code": DEFECT, "cause": f"{type(error).__name__}: {error}", "remedy": traceback.format_exc()}
    write_json(folder / FAILED, failure)
    return str(failure["cause"])


def hold_to_begun(folder: Path, config: SimulateConfig) -> None:
    """Refuse to begin a cell of other data than the cells that were begun before.

    Between two runs of the command somebody may have mended the table: methods and seeds that were trained on different
    images stand in one comparison otherwise, without a word.

    Raises:
        DataError: the data changed, or cannot be read.
        PartitionError: a site would have too little.
    """
    from simulations.drawn_from import FILE, hold_to
    from simulations.sites import forget_sites, shared_sites

    for other in sorted(folder.parent.iterdir()):
        if other == folder or not all((other / name).exists() for name in (FILE, "config.yaml")):
            continue
        theirs = compose(other / "cell.yaml", [])
        same = replace(theirs.dataset, cache_dir=config.dataset.cache_dir) == config.dataset
        if same and theirs.model.image_side == config.model.image_side:
            shared_sites(config, folder.resolve())  # what the run itself reads next: kept, not read twice
            try:
                hold_to(folder, other, other.name)
            except DataError:
                forget_sites()  # somebody puts them back, and this process may live on
                raise
            break


def check_fresh(folder: Path) -> None:
    """Checks of a cell that was never begun: its folder holds our own files already, which are no run."""
    config = compose(folder / "cell.yaml", [])
    check_start(replace(config, run=replace(config.run, dir=None)), resume=False)


def outcome(out: Path, names: list[str]) -> Outcome:
    """Which of the cells have metrics, and why the others do not."""
    done, failed = [], {}
    for name in names:
        folder = out / CELLS / name
        if (folder / "summary.json").exists():
            done.append(name)
        elif (folder / FAILED).exists():
            said = read_json(folder / FAILED)
            # Of what was not foreseen the remedy is where in the program it happened: many lines, which stay there.
            remedy = f"{FAILED} in the cell's folder says where." if said["code"] == DEFECT else said["remedy"]
            failed[name] = Failure(str(said["cause"]), str(remedy))
        else:
            failed[name] = Failure("not finished", "Another process may be at it; the same command finishes it.")
    return Outcome(tuple(done), failed)
