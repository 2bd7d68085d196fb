"""What one site trains and evaluates on: rows of the image cache with labels, divided into splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fed_diffmic.data.cache import ImageCache
from fed_diffmic.data.manifest import SPLITS, Manifest


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images of one split; C classes.

    Attributes:
        rows: (n,) int64, rows of the cache.
        labels: (n,) int64 class indices, or (n, C) float32 of 0 and 1 (multi-label).
        groups: (n,) str, what must not be divided (lesion, patient).
        keys: (n,) uint64, each image's stable number from its content.
        cache: where the pixels are.
        pixels: (n,) str, digest of what each image decodes to, whatever its file's encoding; none: not computed.
        subgroups: (n,) str, what the table says of each image's subgroups; none: nothing was asked for.
    """

    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    keys: np.ndarray
    cache: ImageCache
    pixels: np.ndarray | None = None
    subgroups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, index: np.ndarray) -> torch.Tensor:
        """Pixels of the examples at ``index`` (b,): (b, 3, H, H) uint8."""
        return self.cache.images(self.rows[index])

    def subset(self, index: np.ndarray) -> Examples:
        """The examples at ``index`` (positions or a mask), in that order."""
        pixels = None if self.pixels is None else self.pixels[index]
        subgroups = None if self.subgroups is None else self.subgroups[index]
        parts = (self.rows[index], self.labels[index], self.groups[index], self.keys[index])
        return Examples(*parts, self.cache, pixels, subgroups)

    @classmethod
    def from_manifest(cls, manifest: Manifest, cache: ImageCache) -> Examples:
        """All rows of ``manifest`` (its ``row`` and ``key`` columns filled)."""
        table = manifest.table
        texts = table["subgroups"].to_numpy(dtype=object).astype(str)
        return cls(
            rows=table["row"].to_numpy(np.int64),
            labels=manifest.labels,
            groups=table["group"].to_numpy(dtype=object).astype(str),
            keys=table["key"].to_numpy(np.uint64),
            cache=cache,
            subgroups=texts if (texts != "").any() else None,
        )


@dataclass(frozen=True, eq=False)
class SiteData:
    """One site's data: the three splits, group-disjoint."""

    name: str
    task: str
    classes: tuple[str, ...]
    train: Examples
    val: Examples
    test: Examples

    @classmethod
    def from_manifest(cls, name: str, manifest: Manifest, cache: ImageCache) -> SiteData:
        """Divide a manifest by its ``split`` column (see ``splits.split_site``).

        Raises:
            ValueError: a row has no split.
        """
        split = manifest.table["split"].to_numpy(dtype=object)
        if not np.isin(split, SPLITS).all():
            raise ValueError(f"{name}: every row needs a split (train, val or test) here; split_site fills it")
        parts = {s: Examples.from_manifest(manifest.subset(split == s), cache) for s in SPLITS}
        return cls(name, manifest.task, manifest.classes, **parts)


def merge_sites(name: str, sites: Sequence[SiteData]) -> SiteData:
    """All sites' examples together, each in the split it had; for the pooled baseline and the global metrics.

    Sites follow one another by name, so that the result does not depend on the order given.

    Raises:
        ValueError: no sites, or sites of different tasks, classes or caches.
    """
    ordered = sorted(sites, key=lambda site: site.name)
    if not ordered:
        raise ValueError("no sites to merge")
    first = ordered[0]
    if any(
        (s.task, s.classes) != (first.task, first.classes) or s.train.cache is not first.train.cache for s in ordered
    ):
        raise ValueError("sites of different tasks, classes or image caches cannot be merged")
    return SiteData(
        name, first.task, first.classes, *(_concatenate([getattr(s, split) for s in ordered]) for split in SPLITS)
    )


def _concatenate(parts: list[Examples]) -> Examples:
    pixels = [part.pixels for part in parts if part.pixels is not None]
    told = any(part.subgroups is not None for part in parts)
    texts = [np.full(len(part), "") if part.subgroups is None else part.subgroups for part in parts]
    return Examples(
        rows=np.concatenate([part.rows for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
        cache=parts[0].cache,
        pixels=np.concatenate(pixels) if len(pixels) == len(parts) else None,
        subgroups=np.concatenate(texts) if told else None,
    )
