"""Faults that show only across rows: leaks between splits, duplicate images, classes without images."""

from __future__ import annotations

import hashlib

import numpy as np

from fed_diffmic.data.cache import ImageCache
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import SPLITS, Manifest
from fed_diffmic.data.spelling import report_groups

_CHUNK = 256
_DARKEST = 16  # of 255: 4,095 of 65,535 come to 15.9


def group_leak(
    groups: np.ndarray,
    splits: np.ndarray,
    lines: np.ndarray,
    *,
    table: str,
    unit: str,
    published: bool,
    findings: Findings,
) -> int:
    """Report groups with images in more than one split; their number.

    Args:
        groups, splits: ``(N,)`` object; rows with an empty split do not count.
        lines: ``(N,)`` int64.
        unit: what a group is, in the singular, for the message.
        published: the split is the data set's own and was asked for: a warning, not an error.
    """
    import pandas as pd

    given = splits != ""
    codes, names = pd.factorize(groups[given])
    present = np.zeros((len(names), len(SPLITS)), dtype=bool)
    present[codes, [SPLITS.index(split) for split in splits[given]]] = True
    leaking = present.sum(axis=1) > 1
    count = int(leaking.sum())
    if count:
        tail = "; the published split does this, so metrics on it are optimistic" if published else ""
        findings.add(
            "published-split-leak" if published else "group-across-splits",
            "warning" if published else "error",
            f"{count} of {len(names)} {unit}s have images in more than one of {', '.join(SPLITS)}{tail}",
            table=table,
            rows=lines[given][leaking[codes]],
            field="split",
            count=count,
            remedy="" if published else f"Give all images of a {unit} the same split, or leave the split column out.",
        )
    return count


def ungrouped(groups: np.ndarray, *, lines: np.ndarray, table: str, field: str, unit: str, findings: Findings) -> None:
    """Say what makes groups doubtful: not known (each image counts for itself), written two ways, a placeholder."""
    count = int((groups == "").sum())
    if count:
        message = (
            f"the {unit} of {count} of {len(groups)} images is not known: each counts as a {unit} of its own, "
            f"so that images of one {unit} may be on both sides of a split"
        )
        findings.add("no-groups", "warning", message, table=table, field=field, count=count)
    report_groups(groups, lines=lines, table=table, field=field, unit=unit, findings=findings)


def institution_overlap(manifest: Manifest, findings: Findings) -> None:
    """Say how many groups were seen at several institutions: a partition keeps each of them at one site."""
    t = manifest.table[manifest.table["institution"] != ""]
    pairs = t[["group", "institution"]].drop_duplicates()
    count = int((pairs["group"].value_counts() > 1).sum())
    if count:
        message = (
            f"{count} groups have images from more than one institution; a partition keeps each group whole at one site"
        )
        findings.add(
            "group-across-institutions", "warning", message, table=manifest.source, field="institution", count=count
        )


def empty_classes(manifest: Manifest, findings: Findings) -> None:
    """Say which classes have no image at all."""
    empty = [name for name, count in zip(manifest.classes, manifest.class_counts(), strict=True) if count == 0]
    if empty:
        message = f"no image of: {', '.join(empty)}; metrics report such a class as absent"
        findings.add("empty-class", "warning", message, table=manifest.source, field="label", count=len(empty))


def look_at(manifest: Manifest, cache: ImageCache) -> tuple[np.ndarray, np.ndarray]:
    """What the decoded pixels say of each image, in one pass over them.

    Returns:
        ``(N,)`` int64, equal for two images exactly when their pixels are equal (pixels rather than bytes: the same
        image exported twice often differs in the file's metadata alone); ``(N,)`` uint8, the brightest value of each.
    """
    import pandas as pd

    rows = manifest.table["row"].to_numpy()
    digests: list[bytes] = []
    brightest = np.zeros(len(rows), dtype=np.uint8)
    for start in range(0, len(rows), _CHUNK):
        images = cache.images(rows[start : start + _CHUNK]).numpy()
        digests.extend(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)
        brightest[start : start + len(images)] = images.reshape(len(images), -1).max(axis=1)
    return np.asarray(pd.factorize(np.array(digests, dtype=object))[0], dtype=np.int64), brightest


def almost_black(manifest: Manifest, brightest: np.ndarray, findings: Findings) -> None:
    """Say which images use the darkest sixteenth of the range alone: 12 bits in 16, or nothing but transparency.

    Args:
        brightest: ``(N,)`` from :func:`look_at`.
    """
    dark = brightest <= _DARKEST
    if dark.any():
        findings.add(
            "almost-black",
            "warning",
            f"{int(dark.sum())} of {len(brightest)} images hold nothing brighter than "
            f"{int(brightest[dark].max())} of 255: 12 bits stored in 16, or a wholly transparent image",
            table=manifest.source,
            rows=manifest.table["line"].to_numpy()[dark],
            field="image",
            remedy="Export them again, scaled to the full range of the file's own depth.",
            names=manifest.table["image"].to_numpy()[dark],
        )


def settle_duplicates(manifest: Manifest, codes: np.ndarray, *, published: bool, findings: Findings) -> Manifest:
    """Apply the rule for identical images (docs/data.md).

    Under different labels: every copy is left out, neither label can be trusted. Under the same label: kept, and the
    groups that hold a copy become one group, so that no copy can be on both sides of a split or at two sites. A
    table's own split that puts copies on different sides is an error (a published one: a warning).

    Args:
        codes: ``(N,)`` from :func:`look_at`.
    """
    import pandas as pd

    copies = np.bincount(codes, minlength=1)[codes] > 1
    if not copies.any():
        return manifest
    t = manifest.table
    lines, names = t["line"].to_numpy(), t["image"].to_numpy()
    torn = _several(codes, pd.factorize(t["label"])[0])[codes]
    if torn.any():
        findings.add(
            "contradicting-labels",
            "warning",
            f"{len(set(codes[torn]))} image(s) stand under different labels, in {int(torn.sum())} rows; "
            "all of them are left out, since no label can be trusted",
            table=manifest.source,
            rows=lines[torn],
            field="label",
            remedy="Find out which label is right and keep that row; several labels belong in one row, as 'A|B'.",
            names=names[torn],
        )
    tied = copies & ~torn
    if tied.any():
        message = f"{len(set(codes[tied]))} image(s) occur more than once under one label; kept together in one group"
        findings.add(
            "duplicate-images",
            "warning",
            message,
            table=manifest.source,
            rows=lines[tied],
            field="image",
            names=names[tied],
        )
        split = pd.factorize(t["split"])[0]
        across = tied & _several(codes, split)[codes]
        if across.any():
            findings.add(
                "duplicate-across-splits",
                "warning" if published else "error",
                f"{len(set(codes[across]))} image(s) occur in more than one of {', '.join(SPLITS)}",
                table=manifest.source,
                rows=lines[across],
                field="split",
                remedy=""
                if published
                else "Give all copies of an image the same split, or leave the split column out.",
                names=names[across],
            )
    kept = manifest.with_table(t.assign(group=_merged_groups(t["group"].to_numpy(), codes, tied)))
    return kept.subset(~torn)


def _several(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each code, whether its rows hold more than one value."""
    pairs = np.unique(np.stack([codes, values], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=int(codes.max()) + 1) > 1


def _merged_groups(groups: np.ndarray, codes: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Group names after joining, step by step, all groups that share an image; the first name in order stays."""
    parent = {str(group): str(group) for group in groups}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[int, str] = {}
    for code, group in zip(codes[tied].tolist(), groups[tied], strict=True):
        one, other = sorted((root(first.setdefault(code, group)), root(group)))
        parent[other] = one
    return np.array([root(group) for group in groups], dtype=object)
