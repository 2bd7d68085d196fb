"""Phantoms: images drawn here, written once in the published layout of their modality and read by its reader."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from fed_diffmic.config import DatasetConfig
from fed_diffmic.data.datasets import get_dataset, register_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import ConfigError, DataError, MachineError
from fed_diffmic.files import read_json, sync_folder, write_json

LAYOUTS = {
    "none": "ham10000",
    "dermoscopy": "ham10000",
    "fundus": "aptos2019",
    "chest": "chestxray14",
    "ultrasound": "pmg2000",
}
"""Modality to the published layout that its phantoms are written in."""

SEED = 0
"""Phantoms stand for one published data set: the run's seed changes partition, split and weights, not the images."""

_MARK = "phantoms.json"
_LOCK_TIMEOUT_S = 1800.0


@register_dataset("phantoms")
def read(cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Draw ``dataset.phantom_images`` of ``dataset.modality`` into ``dataset.root``, unless done; read them.

    Raises:
        ConfigError: no root, or one that holds something else.
        DataError: the root holds phantoms drawn with other settings.
        MachineError: another process still draws when the time is up; no space, no permission.
    """
    if cfg.root is None:
        raise ConfigError("dataset.root", None, "a folder to draw the phantoms into")
    root = Path(cfg.root).expanduser().absolute()
    modality = "dermoscopy" if cfg.modality == "none" else cfg.modality
    wanted = {"modality": modality, "images": cfg.phantom_images, "seed": SEED}
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.parent / f".{root.name}.lock", timeout=_LOCK_TIMEOUT_S):
            _draw_unless_there(root, wanted, cfg)
    except Timeout:
        raise MachineError(
            f"another process has been drawing phantoms for {_LOCK_TIMEOUT_S:g} s",
            "Wait for it, or choose another dataset.root.",
        ) from None
    except OSError as error:
        raise MachineError(
            f"the phantoms cannot be written: {error.strerror}", "Free space, or choose another dataset.root."
        ) from error
    return replace_name(
        get_dataset(LAYOUTS[cfg.modality])(replace(cfg, name=LAYOUTS[cfg.modality], root=str(root)), findings)
    )


def replace_name(manifest: Manifest) -> Manifest:
    """The manifest under the name of this data set, so that drawn images never pass for published ones."""
    return Manifest(manifest.table, manifest.classes, manifest.task, "phantoms", manifest.source)


def _draw_unless_there(root: Path, wanted: dict[str, object], cfg: DatasetConfig) -> None:
    if (root / _MARK).is_file():
        if read_json(root / _MARK) != wanted:
            raise DataError(
                "dataset.root holds phantoms that were drawn with another modality or number",
                "Choose another dataset.root, or remove that folder.",
            )
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(
            "dataset.root", cfg.root, "a new or empty folder, or one that phantoms were drawn into (dataset=phantoms)"
        )
    from fed_diffmic.data.phantoms import write_phantoms  # only a run that draws needs the drawing room

    draft = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}.part-"))
    try:
        write_phantoms(draft, str(wanted["modality"]), cfg.phantom_images, SEED)
        write_json(draft / _MARK, wanted)
        os.replace(draft, root)
        sync_folder(root.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
