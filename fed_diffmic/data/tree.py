"""Finding image files: a folder tree indexed once, by file name or by name without ending."""

from __future__ import annotations

import filecmp
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fed_diffmic.config.groups import DatasetConfig, layout_options
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, MachineError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Copies that operating systems and archive tools leave beside the data.
_LITTER = ("__MACOSX",)


def root_folder(cfg: DatasetConfig) -> Path:
    """The folder (or, for a table, the file) of the data set, absolute.

    Raises:
        ConfigError: not given, or not there.
        MachineError: there, but this user may not read it.
    """
    if cfg.root is None:
        raise ConfigError("dataset.root", None, f"the folder of the {cfg.name} data set")
    root = Path(cfg.root).expanduser().absolute()
    if not root.exists():
        raise ConfigError(
            "dataset.root", cfg.root, f"the folder of the {cfg.name} data set; there is nothing of that name"
        )
    if root.is_file() and not layout_options(cfg.name).root_file:
        raise ConfigError("dataset.root", cfg.root, f"a folder; this is a file, and {cfg.name} is read from a folder")
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        what = "folder" if root.is_dir() else "table"
        raise MachineError(f"the {what} {root} is there but may not be read", f"Ask for permission to read the {what}.")
    return root


class NearNames:
    """What of the names that are not there is there under a name that is nearly the same; no name is kept."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def look(self, names: Iterable[str], there: Collection[str]) -> None:
        """Count the missing ``names`` of which one of ``there`` differs in one of these ways only."""
        keys = [(kind, key, {key(other) for other in there}) for kind, key in _NEAR.items()]
        for name in names:
            kind = next((kind for kind, key, found in keys if key(name) in found), None)
            if kind is not None:
                self.kinds[kind] += 1

    def sentence(self) -> str:
        """For the finding, or empty."""
        found = [f"{count} of them with {kind}" for kind, count in sorted(self.kinds.items())]
        return f" (there are files {', '.join(found)})" if found else ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


_NEAR = {
    "accents stored in another way": lambda name: unicodedata.normalize("NFC", name),
    "other upper and lower case": _folded,
    "another ending, or one where the table has none": lambda name: (
        os.path.splitext(_folded(name))[0] if _folded(name).endswith(IMAGE_ENDINGS) else _folded(name)
    ),
}


@dataclass(frozen=True)
class Located:
    """Where the images are that a table names.

    Attributes:
        paths: ``(N,)`` object, absolute; empty where there is none, or several that differ.
        several: ``(N,)`` bool, several files of that name whose bytes differ.
        near: what of the names that are not there is there under a name that is nearly the same.
        copies: names of which several files hold the same bytes; the first of them in order is taken.
    """

    paths: np.ndarray
    several: np.ndarray
    near: NearNames
    copies: int = 0


class ImageTree:
    """Every image under some folders, links to folders followed once, by file name and by name without ending."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.by_name: dict[str, list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        for path in paths:
            name = os.path.basename(path)
            self.by_name.setdefault(name, []).append(path)
            self.by_stem.setdefault(os.path.splitext(name)[0], []).append(path)

    @classmethod
    def scan(cls, *folders: Path) -> ImageTree:
        """Index the images under ``folders``; hidden files and folders are passed over."""
        return cls(path for folder in folders for path in images_under(str(folder)))

    def locate(self, names: np.ndarray, *, ending: bool) -> Located:
        """The image of each name, ``(N,)`` object.

        Args:
            names: file names with (``ending``) or without their ending.
            ending: which of the two.
        """
        index = self.by_name if ending else self.by_stem
        hits = [_distinct(index.get(name, ())) for name in names]
        copies = sum(len(index.get(name, ())) > 1 and len(hit) == 1 for name, hit in zip(names, hits, strict=True))
        paths = np.empty(len(names), dtype=object)
        paths[:] = [hit[0] if len(hit) == 1 else "" for hit in hits]
        near = NearNames()
        near.look([name for name, hit in zip(names, hits, strict=True) if not hit], index)
        return Located(paths, np.array([len(hit) > 1 for hit in hits], dtype=bool), near, copies)


def _distinct(paths: Sequence[str]) -> list[str]:
    """The paths in order, without those whose bytes are those of the first (a file that cannot be read differs)."""
    if len(paths) < 2:
        return list(paths)
    first, *others = sorted(paths)
    try:
        return [first, *(path for path in others if not filecmp.cmp(first, path, shallow=False))]
    except OSError:
        return list(paths)


def images_under(top: str) -> Iterable[str]:
    """Paths of the images under a folder; hidden files and folders are passed over, links to folders followed once.

    Raises:
        MachineError: a folder may not be read.
    """
    seen: set[tuple[int, int]] = set()

    def stop(error: OSError) -> None:
        raise MachineError(
            f"a folder of the images cannot be read: {error.strerror}", "Ask for permission to read it."
        ) from None

    for folder, folders, files in os.walk(top, followlinks=True, onerror=stop):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _LITTER)
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield os.path.join(folder, name)


def keep_found(
    located: Located,
    *,
    names: np.ndarray,
    lines: np.ndarray,
    table: str,
    field: str,
    cfg: DatasetConfig,
    findings: Findings,
) -> np.ndarray:
    """``(N,)`` bool: rows whose image was found; the others become findings as ``dataset.on_bad_image`` says.

    Args:
        located: where they are.
        names: ``(N,)`` object, what the table calls the image (findings file only).
        lines: ``(N,)`` int64, line of each row.
    """
    # A hospital's own table names its images from where it lies itself; a published one, images below dataset.root.
    own = cfg.name == "table"
    place = "the folder of the table" if own else "dataset.root"
    paths, several, hint = located.paths, located.several, located.near.sentence()
    found = paths != ""
    severity = "warning" if cfg.on_bad_image == "skip" else "error"
    total = f"of {len(paths)} images that the table names"
    missing = ~found & ~several
    if not found.any():
        message = f"no image {total} is under {place}{hint}"
        remedy = "Point dataset.root at the folder that holds both the table and the images."
        if own:
            remedy = "Put the table into the folder that its image paths start from, or correct the paths."
        findings.add("no-images", "error", message, table=table, field=field, count=len(paths), remedy=remedy)
    elif missing.any():
        tail = "; the others are left out" if severity == "warning" else ""
        findings.add(
            "missing-image",
            severity,
            f"{int(missing.sum())} {total} are not under {place}{hint}, {int(found.sum())} are{tail}",
            table=table,
            rows=lines[missing],
            field=field,
            remedy="Add the missing images, or set dataset.on_bad_image=skip to go on with those that are there.",
            names=names[missing],
        )
    if located.copies:
        message = f"{located.copies} images lie there more than once, with the same bytes; one copy of each is used"
        findings.add("copied-image", "warning", message, table=table, field=field, count=located.copies)
    if several.any():
        findings.add(
            "ambiguous-image",
            severity,
            "more than one file of that name in different folders" + ("; left out" if severity == "warning" else ""),
            table=table,
            rows=lines[several],
            field=field,
            remedy="Keep one copy of each image under dataset.root.",
            names=names[several],
        )
    return found
