"""Where DICOM files come from: a folder, or what a DICOMDIR names. An archive is fetched into a folder first.

Every source gives the same thing: files on this disk, in an order that does not depend on the file system.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fed_diffmic.data.dicom.bounded import DECODERS
from fed_diffmic.data.dicom.reasons import REASONS, UnusableError, is_dicom
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import DataError, MachineError, UsageError

DIRECTORY = "DICOMDIR"


@dataclass(frozen=True)
class Item:
    """One file.

    Attributes:
        path: where it lies.
        name: below the source, for the site's own findings file.
    """

    path: Path
    name: str


def items_of(source: Path, findings: Findings) -> list[Item]:
    """The files of a folder, or those that a DICOMDIR names.

    Raises:
        UsageError: there is nothing of that name.
        DataError: a file that is no DICOMDIR.
        MachineError: it may not be read.
    """
    if source.is_dir():
        return sorted(_below(source, findings), key=lambda item: item.name)
    if source.is_file():
        return list(_named_by(source, findings))
    raise UsageError(f"{source}: there is no such folder or DICOMDIR", "A relative path starts at the current folder.")


def read_file(path: Path, most_bytes: float) -> bytes:
    """A file's content, if it is an ordinary DICOM file within the bound.

    Raises:
        UnusableError: ``unknown_format``: no DICOM; else why it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UnusableError("not_a_file")
            start = stream.read(132)
            if not is_dicom(start):
                raise UnusableError("unknown_format" if start else "empty")
            if os.fstat(stream.fileno()).st_size > most_bytes:
                raise UnusableError("too_large")
            return start + stream.read()
    except FileNotFoundError:
        raise UnusableError("missing") from None
    except PermissionError:
        raise UnusableError("permission") from None
    except OSError:
        raise UnusableError("unreadable") from None


def _below(root: Path, findings: Findings) -> Iterator[Item]:
    links = 0

    def refused(error: OSError) -> None:
        raise MachineError(
            f"a folder below {root} may not be read: {error.strerror}",
            "Ask for permission, or leave it out.",
        ) from error

    for folder, folders, files in os.walk(root, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():  # no pipe, no socket, no device
                yield Item(path, path.relative_to(root).as_posix())
    if links:
        findings.add(
            "link-not-followed", "warning", f"{links} links to folders were not followed", count=links, table=root.name
        )


def _named_by(path: Path, findings: Findings) -> Iterator[Item]:
    try:
        answer, _ = DECODERS.ask({"what": "references"}, read_file(path, 2**30))
    except UnusableError as error:
        if error.reason == "dicom_not_installed":
            raise UsageError(
                "the packages that read DICOM are not installed", "Run pip install 'fed-diffmic[dicom]'."
            ) from None
        why = "it is none" if error.reason == "dicom_no_picture" else REASONS.get(error.reason, "it is no DICOM file")
        raise DataError(
            f"{path.name} cannot be read as a {DIRECTORY}: {why}",
            f"Name the folder that holds the images, or the file {DIRECTORY} of a medium.",
        ) from None
    below = {entry.name.casefold(): entry.name for entry in os.scandir(path.parent)}
    root = path.parent.resolve()
    missing, outside = [], []
    for parts in answer["references"]:
        name = "/".join(parts)
        if any(part in ("", ".", "..") or set(part) & set("/\\\0") for part in parts):
            outside.append(name)
            continue
        first = below.get(parts[0].casefold(), parts[0])
        file = path.parent.joinpath(first, *parts[1:])
        if not file.is_file():
            missing.append(name)
        elif not file.resolve().is_relative_to(root):  # by a symbolic link
            outside.append(name)
        else:
            yield Item(file, name)
    for code, names, message in (
        ("missing-image", missing, f"{len(missing)} files that the {DIRECTORY} names are not there"),
        (
            "path-outside",
            outside,
            f"{len(outside)} paths in the {DIRECTORY} lead out of its folder; passed over",
        ),
    ):
        if names:
            findings.add(code, "warning", message, table=path.name, count=len(names), names=names)
