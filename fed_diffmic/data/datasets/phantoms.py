"""Phantoms: drawn images, in the published layout of their modality and read by its reader."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from fed_diffmic.config.fields import option
from fed_diffmic.config.groups import DatasetConfig, DatasetOptions
from fed_diffmic.data.datasets import get_dataset, register_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.data.phantoms import LAYOUTS, MARKER, write_phantoms
from fed_diffmic.errors import ConfigError, DataError
from fed_diffmic.files import read_json

SEED = 0
"""Of what is drawn here; whoever wants other images draws them first (``write_phantoms``)."""


@dataclass(frozen=True)
class Options(DatasetOptions):
    """Procedurally drawn images, for trying things out without any data; no clinical meaning."""

    public: ClassVar[bool] = True
    needs_root: ClassVar[bool] = False

    phantom_images: int = option(480, "number of images to draw", ge=16, le=1_000_000)


@register_dataset("phantoms", Options, modality="dermoscopy")
def read(cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Read the phantoms in ``dataset.root``; where there is nothing yet, draw ``dataset.phantom_images`` of them first.

    Raises:
        ConfigError: no root.
        DataError: the root holds something else, or phantoms of another modality.
        MachineError: another process still draws when the time is up; no space, no permission.
    """
    if cfg.root is None:
        raise ConfigError("dataset.root", None, "a folder to draw the phantoms into")
    root = Path(cfg.root).expanduser().absolute()
    modality = "dermoscopy" if cfg.modality == "none" else cfg.modality
    if not (root / MARKER).is_file():
        images = Options.of(cfg).phantom_images
        write_phantoms(root, modality, images, SEED)
        findings.add(
            "drawn-images",
            "warning",
            f"{images} images were drawn into {root} now: no figure on them says anything about patients",
            count=images,
            remedy="For images of your own name their layout: dataset=table (or `fed-diffmic options dataset`).",
        )
    drawn = read_json(root / MARKER)
    if not isinstance(drawn, dict) or drawn.get("modality") != modality:
        raise DataError(
            f"dataset.root holds phantoms of another modality than {modality}",
            "Choose another dataset.root, or remove that folder.",
        )
    layout = LAYOUTS[modality][0]
    manifest = get_dataset(layout)(replace(cfg, name=layout, root=str(root)), findings)
    # Under their own name, so that drawn images never pass for published ones.
    return Manifest(manifest.table, manifest.classes, manifest.task, cfg.name, manifest.source)
