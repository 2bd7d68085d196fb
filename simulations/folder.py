"""The folder of a simulated run: made, left as it was where no run began, and freed of what only resuming needs."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from client.state import SiteStore
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import MachineError
from fed_diffmic.files import atomic_write, sync_folder
from fed_diffmic.release.personal import PARTS
from simulations.drawn_from import FILE as DRAWN_FROM

FINDINGS = "findings.csv"


def prepare_run_dir(config: SimulateConfig) -> Path:
    """The run's folder, made if needed.

    Raises:
        MachineError: it cannot be made or written.
    """
    run_dir = Path(str(config.run.dir)).resolve()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"run.dir cannot be made: {error.strerror}", "Choose a folder you may write to.") from error
    if not os.access(run_dir, os.W_OK):
        raise MachineError("run.dir cannot be written", "Choose a folder you may write to.")
    return run_dir


def leave_nothing(run_dir: Path) -> None:
    """Remove the folder of a run that was not begun, unless it holds something to look at (findings, phantoms)."""
    (run_dir / DRAWN_FROM).unlink(missing_ok=True)
    findings = run_dir / FINDINGS
    with suppress(OSError):
        if findings.is_file() and len(findings.read_bytes().splitlines()) < 2:  # the headings alone
            findings.unlink()
        run_dir.rmdir()  # fails where it is not empty


def forget_rounds(folder: Path) -> None:
    """Remove the checkpoints of a baseline or a trial that has its final model: from then on it is loaded from there.

    They are two thirds of what it leaves, and a grid of learning rates for every site alone makes hundreds of them.
    """
    if (folder / "checkpoints").exists():
        shutil.rmtree(folder / "checkpoints")


def keep_trial(trial: Path, folder: Path) -> None:
    """Put the model of the trial that did best where an arm's model is looked for; the trial keeps its own.

    Args:
        trial: its folder.
        folder: the arm's.

    Raises:
        MachineError: a file of it cannot be written.
    """
    for name in (PARTS, "final"):  # the model last: where it is, the sites' own parts of it are
        part = folder / f".{name}.part"
        for old in (part, folder / name):
            if old.exists():
                shutil.rmtree(old)
        if (trial / name).exists():
            shutil.copytree(trial / name, part, copy_function=_linked)
            sync_folder(part)
            part.rename(folder / name)
            sync_folder(folder)


def _linked(source: str, target: str) -> None:
    """The same file by another name, which is never written into; a copy, flushed, where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        atomic_write(target, Path(source).read_bytes())


def forget_site_files(run_dir: Path) -> None:
    """Remove what virtual sites kept to resume (bases, states, updates); their logs stay."""
    for folder in sorted((run_dir / "sites").glob("*")):
        SiteStore(folder).purge()
