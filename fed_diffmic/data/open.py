"""From a configuration to images in hand: read the layout, decode once, settle duplicates, report everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fed_diffmic.config.groups import DatasetConfig, layout_options
from fed_diffmic.data.cache import ImageCache, Progress, Room, build_cache
from fed_diffmic.data.checks import (
    almost_black,
    empty_classes,
    group_leak,
    institution_overlap,
    look_at,
    settle_duplicates,
)
from fed_diffmic.data.datasets import Reader, get_dataset
from fed_diffmic.data.datasets.table import read_table_of_images
from fed_diffmic.data.decode import REASONS
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.errors import DataError, FedDiffmicError, MachineError

DEFAULT_CACHE = Path("~/.cache/fed_diffmic")


@dataclass(frozen=True)
class OpenDataset:
    """A data set that can be used: every row of ``manifest`` has a decoded image in ``cache``.

    Args:
        manifest: rows with ``row`` (position in the cache) and ``key`` filled in.
        cache: decoded images.
        findings: what was found; errors only if they were asked not to be raised.
    """

    manifest: Manifest
    cache: ImageCache
    findings: Findings


def cache_folder(cfg: DatasetConfig) -> Path:
    """Where decoded copies of the images go: ``dataset.cache_dir``, else ``~/.cache/fed_diffmic``."""
    return Path(cfg.cache_dir or DEFAULT_CACHE).expanduser().absolute()


def open_dataset(
    cfg: DatasetConfig,
    image_side: int,
    *,
    findings_path: Path | None,
    workers: int = 0,
    progress: Progress | None = None,
    raise_errors: bool = True,
    room: Room | None = None,
) -> OpenDataset:
    """Read a layout, decode its images (from the cache if they are there), apply the rules of docs/data.md.

    Args:
        cfg: group ``dataset``.
        image_side: H, pixels.
        findings_path: file for the findings with image names, 0600. None: no file.
        workers: threads that decode; 0: one a core.
        progress: called with "hashing" or "decoding", images done, of how many.
        raise_errors: raise when a finding is an error (else the caller looks at ``findings.errors``).
        room: called before decoded copies are written; raises where they may not be.

    Raises:
        ConfigError: the configuration does not fit the data set.
        DataError: every error found, together; or nothing usable is left.
        MachineError: no space, no permission.
    """
    reader = get_dataset(cfg.name)
    making = _Making(workers, progress, room)
    return _open(reader, cfg, image_side, Findings(findings_path), making, raise_errors)


def open_table(
    manifest_file: str | Path,
    classes: Sequence[str],
    task: str,
    image_side: int,
    cache_dir: str | Path | None,
    *,
    on_bad_image: str = "error",
    findings_path: Path | None = None,
) -> OpenDataset:
    """Open any table of images for the evaluation of a trained model with these classes.

    All rows are evaluated: a ``split`` column is passed over.

    Args:
        manifest_file: table ``image,label[,patient_id,institution]``, image paths relative to it.
        classes: the model's classes, in order; a label that is none of them is an error.
        task: the model's task.
        image_side: H, pixels.
        cache_dir: folder for decoded copies; None: the default.
        on_bad_image: ``error`` or ``skip``, as ``dataset.on_bad_image``.
        findings_path: as for :func:`open_dataset`.

    Raises:
        as :func:`open_dataset`.
    """
    cfg = DatasetConfig(
        name="table",
        root=str(manifest_file),
        on_bad_image=on_bad_image,
        task=task,
        classes=list(classes),
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
    reader = partial(read_table_of_images, own_split=False)
    findings = Findings(findings_path, trained=True)
    return _open(reader, cfg, image_side, findings, _Making(), raise_errors=True)


@dataclass(frozen=True)
class _Making:
    """How decoded copies are made, where there are none: arguments of :func:`build_cache`."""

    workers: int = 0
    progress: Progress | None = None
    room: Room | None = None


def _open(
    reader: Reader,
    cfg: DatasetConfig,
    image_side: int,
    findings: Findings,
    making: _Making,
    raise_errors: bool,
) -> OpenDataset:
    try:
        result = _read_and_check(reader(cfg, findings), cfg, image_side, findings, making)
        if raise_errors:
            findings.raise_if_errors()
    except FedDiffmicError as error:
        try:
            findings.write()
        except MachineError as unwritten:  # the first failure is the one to mend first
            error.add_note(str(unwritten))
        raise
    findings.write()
    return result


def _read_and_check(
    manifest: Manifest,
    cfg: DatasetConfig,
    image_side: int,
    findings: Findings,
    making: _Making,
) -> OpenDataset:
    if len(manifest) == 0:
        findings.add("no-images", "error", "no usable row is left", table=manifest.source, count=0)
        findings.raise_if_errors()
    paths = manifest.table["image"].tolist()
    cache = build_cache(
        paths,
        image_side=image_side,
        folder=cache_folder(cfg),
        workers=making.workers,
        progress=making.progress,
        room=making.room,
    )
    manifest = manifest.with_table(manifest.table.assign(row=np.arange(len(manifest)), key=cache.keys))
    manifest = _without_bad(manifest, cache, cfg, findings)
    return OpenDataset(_check_across(manifest, cache, cfg, findings), cache, findings)


def _without_bad(manifest: Manifest, cache: ImageCache, cfg: DatasetConfig, findings: Findings) -> Manifest:
    """Leave out images that could not be decoded; one finding for each reason."""
    table = manifest.table
    severity = "warning" if cfg.on_bad_image == "skip" else "error"
    for reason in sorted(set(cache.bad.values())):
        rows = sorted(position for position, why in cache.bad.items() if why == reason)
        findings.add(
            "unreadable-image",
            severity,
            f"{REASONS[reason]}{'; left out' if severity == 'warning' else ''}",
            table=manifest.source,
            rows=table["line"].to_numpy()[rows],
            field="image",
            remedy="Replace these images, or set dataset.on_bad_image=skip to go on without them.",
            names=table["image"].to_numpy()[rows],
        )
    good = np.ones(len(manifest), dtype=bool)
    good[list(cache.bad)] = False
    if not good.any():
        remedy = "Give readable images in a format that is known (JPEG, PNG, TIFF, BMP, GIF, WEBP, DICOM, ...)."
        message = "none of the images can be read"
        findings.add("no-images", "error", message, table=manifest.source, count=len(manifest), remedy=remedy)
        findings.raise_if_errors()
    return manifest.subset(good)


def _check_across(manifest: Manifest, cache: ImageCache, cfg: DatasetConfig, findings: Findings) -> Manifest:
    """The checks across rows, in the order in which they leave rows out."""
    published = cfg.split == "published" and layout_options(cfg.name).published_split
    if not published:
        t = manifest.table
        groups, splits, lines = t["group"].to_numpy(), t["split"].to_numpy(), t["line"].to_numpy()
        group_leak(groups, splits, lines, table=manifest.source, unit="group", published=False, findings=findings)
    codes, brightest = look_at(manifest, cache)
    almost_black(manifest, brightest, findings)
    manifest = settle_duplicates(manifest, codes, published=published, findings=findings)
    if len(manifest) == 0:
        raise DataError(
            "every image stands under different labels; nothing is left", "Correct the labels of the table."
        )
    institution_overlap(manifest, findings)
    empty_classes(manifest, findings)
    return manifest
