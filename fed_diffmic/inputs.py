"""Files that a command is given to read: refused by the names that they were given."""

from __future__ import annotations

from pathlib import Path

from fed_diffmic.errors import UsageError


def check_file(name: str, path: str | Path, remedy: str = "A relative path starts at the current folder.") -> None:
    """Refuse a file to read that is not there.

    Args:
        name: what it was given as: an option or a field.
        path: as it was given.
        remedy: what to do about it.

    Raises:
        UsageError: it is not there, or is no file.
    """
    if not Path(path).is_file():
        raise UsageError(f"{name} {path}: there is no such file", remedy)
