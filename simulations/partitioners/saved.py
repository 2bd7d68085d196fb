"""A partition with its splits as a file: saved with each run, read back to repeat it exactly.

One line an image: its content key (no file or patient name), site and split, sorted, under a first line
that holds the digest of the rest.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fed_diffmic.config.fields import option
from fed_diffmic.config.groups import PartitionOptions
from fed_diffmic.config.owners import PARTITIONERS, register
from fed_diffmic.data.manifest import SPLITS, Manifest
from fed_diffmic.errors import PartitionError
from fed_diffmic.files import atomic_write

SAVED = "saved"
"""``partition.name`` of a file that an earlier run saved; its sites and splits are taken as they are."""

_HEAD = "# fed_diffmic partition 1 sha256="


@dataclass(frozen=True)
class Options(PartitionOptions):
    """A partition with its splits as an earlier run saved it; give partition.file."""

    given_sites: ClassVar[bool] = True

    file: str | None = option(
        None, "partition.csv of an earlier run, with its sites and splits", path=True, exclusive=True
    )


register(PARTITIONERS, SAVED, Options)


def save_partition(path: str | Path, parts: Mapping[str, Manifest]) -> str:
    """Write which image is at which site in which split; returns the digest of the partition.

    Raises:
        ValueError: an image without a content key (the cache has not been built) or without a split.
        MachineError: the file cannot be written.
    """
    lines = set()
    for site, manifest in parts.items():
        table = manifest.table
        if (table["key"] == 0).any() or not table["split"].isin(SPLITS).all():
            raise ValueError(f"{site}: every image needs its content key and a split before the partition is saved")
        lines |= set(zip(table["key"].tolist(), [site] * len(table), table["split"].tolist(), strict=True))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "site", "split"])
    writer.writerows(sorted(lines))
    body = text.getvalue().encode()
    digest = hashlib.sha256(body).hexdigest()
    atomic_write(path, f"{_HEAD}{digest}\n".encode() + body)
    return digest


def load_partition(path: str | Path, manifest: Manifest) -> dict[str, Manifest]:
    """Divide ``manifest`` as a saved partition says, splits filled in; sites sorted by name.

    Raises:
        PartitionError: the file is missing, torn or changed, or is not of these images.
    """
    where = _read(Path(path))
    keys = [int(k) for k in manifest.table["key"]]
    lacking = sum(key not in where for key in keys)
    surplus = len(where.keys() - set(keys))
    if lacking or surplus:
        raise PartitionError(
            f"{path} is a partition of other images: {lacking} of {len(keys)} images here are not in it, {surplus} of "
            f"its {len(where)} are not here",
            "Use it with the data set that it was saved for.",
        )
    sites = np.array([where[key][0] for key in keys])
    filled = manifest.with_table(manifest.table.assign(split=[where[key][1] for key in keys]))
    return {str(site): filled.subset(sites == site) for site in np.unique(sites)}


def _read(path: Path) -> dict[int, tuple[str, str]]:
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head.decode() != _HEAD + hashlib.sha256(body).hexdigest():
            raise ValueError("digest")
        rows = list(csv.reader(io.StringIO(body.decode())))[1:]
        where = {int(key): (site, split) for key, site, split in rows}
        if len(where) < len(rows) or any(split not in SPLITS for _, split in where.values()):
            raise ValueError("rows")
    except (OSError, ValueError) as error:
        raise PartitionError(
            f"{path} is not a whole partition file ({error.strerror if isinstance(error, OSError) else error})",
            "Give the partition.csv of a finished run just as it was saved (a spreadsheet writes another file), or "
            "divide anew with partition=iid or another.",
        ) from error
    return where
