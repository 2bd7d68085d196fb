"""Finding image files: a folder tree indexed once, by file name or by name without ending."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fed_diffmic.config.simulation import DatasetConfig
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
    if root.is_file() and cfg.name != "table":
        raise ConfigError("dataset.root", cfg.root, f"a folder; this is a file, and {cfg.name} is read from a folder")
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        raise MachineError("dataset.root is there but may not be read", "Ask for permission to read the folder.")
    return root


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
        return cls(path for folder in folders for path in _images_under(str(folder)))

    def locate(self, names: np.ndarray, *, ending: bool) -> tuple[np.ndarray, np.ndarray]:
        """Absolute path of each name, ``(N,)`` object, empty where none or several; and where several, ``(N,)`` bool.

        Args:
            names: ``(N,)`` object, file names with (``ending``) or without their ending.
            ending: which of the two.
        """
        index = self.by_name if ending else self.by_stem
        hits = [index.get(name, ()) for name in names]
        paths = np.empty(len(names), dtype=object)
        paths[:] = [hit[0] if len(hit) == 1 else "" for hit in hits]
        return paths, np.array([len(hit) > 1 for hit in hits], dtype=bool)


def _images_under(top: str) -> Iterable[str]:
    seen: set[tuple[int, int]] = set()

    def stop(error: OSError) -> None:
        raise MachineError(
            f"a folder under dataset.root cannot be read: {error.strerror}", "Ask for permission to read it."
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
    paths: np.ndarray,
    several: np.ndarray,
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
        paths: ``(N,)`` object, empty where no single file was found.
        several: ``(N,)`` bool, several files of that name.
        names: ``(N,)`` object, what the table calls the image (findings file only).
        lines: ``(N,)`` int64, line of each row.
    """
    found = paths != ""
    severity = "warning" if cfg.on_bad_image == "skip" else "error"
    total = f"of {len(paths)} images that the table names"
    missing = ~found & ~several
    if not found.any():
        message = f"no image {total} is under dataset.root"
        remedy = "Point dataset.root at the folder that holds both the table and the images."
        findings.add("no-images", "error", message, table=table, field=field, count=len(paths), remedy=remedy)
    elif missing.any():
        tail = "; the others are left out" if severity == "warning" else ""
        findings.add(
            "missing-image",
            severity,
            f"{int(missing.sum())} {total} are not under dataset.root, {int(found.sum())} are{tail}",
            table=table,
            rows=lines[missing],
            field=field,
            remedy="Add the missing images, or set dataset.on_bad_image=skip to go on with those that are there.",
            names=names[missing],
        )
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
