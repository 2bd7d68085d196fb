"""Where commands write: refused before the work begins rather than after it, and never over what they read."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from fed_diffmic.errors import MachineError, UsageError
from fed_diffmic.files import is_output, private_folder


def check_output(option: str, target: str | Path) -> None:
    """Refuse a file that could not be written when all is done.

    Raises:
        UsageError: it is a folder, or its own folder is not there, or is none.
        MachineError: nothing may be written there.
    """
    path = Path(target)
    if is_output(target):
        return
    if path.is_dir():
        raise UsageError(f"{option} {target} is a folder", "Name a file, in it or elsewhere.")
    if path.exists() and not path.is_file():
        return  # a pipe or a device is written into, whatever its folder is
    folder = (Path(os.path.realpath(path)) if path.is_symlink() else path).absolute().parent
    if _usable(option, target, folder) != folder:
        raise UsageError(f"{option} {target}: its folder does not exist", "Make that folder.")


def check_output_folder(option: str, folder: Path) -> None:
    """Refuse a folder into which nothing could be written when all is done; one that is not there is made then.

    Raises:
        UsageError: it is a file, or lies below what is no folder.
        MachineError: nothing may be written there, or others may write into it too.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option} {folder} is a file", "Name a folder, existing or not.")
    _usable(option, folder, folder.absolute())
    if folder.exists():
        private_folder(folder)


def _usable(option: str, target: str | Path, folder: Path) -> Path:
    """The nearest that is there of a folder and those above it, where something may be made."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(f"{option} {target}: {there} is no folder", "Give a path that leads through folders alone.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise MachineError(
            f"{option} {target}: nothing may be written in {there}", "Choose a folder that you may write to."
        )
    return there


def check_spares(option: str, target: str | Path, read: Iterable[tuple[str, str | Path | None]]) -> None:
    """Refuse to write over what the command reads, by whatever name.

    Args:
        read: what is read: what it is called, and its path.

    Raises:
        UsageError: says which.
    """
    try:
        own = os.stat(target)
    except OSError:
        return  # nothing is there that could be lost
    if is_output(target) or not stat.S_ISREG(own.st_mode):
        return
    for name, path in read:
        if path is not None and os.path.exists(path) and os.path.samestat(own, os.stat(path)):
            raise UsageError(f"{option} {target} is also {name}, which would be written over", "Name another file.")


def check_outside(option: str, target: str | Path, run: Path, names: Collection[str] = ()) -> None:
    """Refuse to write into a run's folder, by a link too.

    Args:
        names: the files and folders of it that alone are meant; none: all of it.

    Raises:
        UsageError: says so.
    """
    folder, path = Path(os.path.realpath(run)), Path(os.path.realpath(target))
    if path.is_relative_to(folder) and (not names or path.relative_to(folder).parts[0] in names):
        raise UsageError(
            f"{option} {target} would lie among the run's own files", "Name a file outside of the run's folder."
        )
