"""Divide one site's images into training, validation and test, by group, as a real site would: on its own.

A group (patient, lesion) is never divided. Candidates are drawn as scikit-learn draws them, stratified by each group's
rarest label where its size allows; because groups differ in size and may carry several labels, of the
candidates the one is taken whose share of images, of all and of each class, is nearest to what was asked,
while leaving as many classes as possible something to train on.

With ``folds`` (cross-validation) every image is a test image in exactly one fold, and which images a site has does not
depend on the fold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fed_diffmic.data.draws import shuffled, stratified
from fed_diffmic.data.groups import Groups
from fed_diffmic.data.manifest import SPLITS, Manifest
from fed_diffmic.errors import PartitionError
from fed_diffmic.seeding import derive_seed

CANDIDATES = 48


@dataclass(frozen=True)
class Fold:
    """Which part of a site's images is held out for the test.

    Attributes:
        folds: K, from 2; 0: none, a share of the images is drawn for the test.
        fold: which of them, 0 to K - 1.
    """

    folds: int = 0
    fold: int = 0


NO_FOLD = Fold()


def split_site(
    manifest: Manifest, site: str, seed: int, val_fraction: float, test_fraction: float, held_out: Fold = NO_FOLD
) -> Manifest:
    """Fill the ``split`` column of one site's manifest.

    A split column that is filled already wins. If it holds training and test but no validation, validation
    is cut out of training by group, of the size that ``val_fraction`` is of what is not test; groups that
    the given split itself has on both sides (DiffMIC's published one for HAM10000 does) stay out of
    validation as long as others are left.

    Args:
        manifest: the site's images; the order of its rows does not matter.
        site: name of the site; with ``seed`` it seeds the draw, so that no site needs another's data.
        seed: of the run.
        val_fraction, test_fraction: shares of the site's images, each in (0, 1), together below 1.
        held_out: with folds, the test images are those of one fold (``test_fraction`` has no say), and validation is
            ``val_fraction`` of the site's images, of the others.

    Raises:
        PartitionError: too few groups, or a given split that is incomplete, or one beside folds; with the site and the
            counts.
    """
    given = manifest.table["split"].to_numpy(dtype=object).astype(str)
    groups = Groups.of(manifest)
    split = np.full(len(manifest), "train", dtype=object)
    rest_fraction = val_fraction / (1 - test_fraction)
    if held_out.folds:
        _check_folds(given, groups, site, held_out.folds)
        test = np.flatnonzero(fold_of_groups(groups, held_out.folds, derive_seed(seed, "folds", site)) == held_out.fold)
        left = np.setdiff1d(np.arange(len(groups)), test)
        share = min(val_fraction / (1 - 1 / held_out.folds), 0.5)
        val = _cut(groups, left, share, derive_seed(seed, "split", site, "val", held_out.fold), keep=1)
        split[np.isin(groups.of_row, test)] = "test"
        split[np.isin(groups.of_row, val)] = "val"
    elif (given == "").all():
        if len(groups) < 3:
            raise PartitionError(
                f"site {site} has {len(manifest)} image(s) in {len(groups)} group(s); training, validation and test "
                "need at least one group each",
                "Give this site images of at least 3 groups (patients, lesions), or leave it out; in a simulation "
                "fewer sites or a larger partition.alpha may do.",
            )
        test = _cut(groups, np.arange(len(groups)), test_fraction, derive_seed(seed, "split", site, "test"), keep=2)
        left = np.setdiff1d(np.arange(len(groups)), test)
        val = _cut(groups, left, rest_fraction, derive_seed(seed, "split", site, "val"), keep=1)
        split[np.isin(groups.of_row, test)] = "test"
        split[np.isin(groups.of_row, val)] = "val"
    else:
        _check_given(given, site)
        split = given.astype(object)
        if not (given == "val").any():
            split[_val_rows(manifest, groups, given, site, rest_fraction, derive_seed(seed, "split", site, "val"))] = (
                "val"
            )
    return manifest.with_table(manifest.table.assign(split=split))


def fold_of_groups(groups: Groups, folds: int, seed: int) -> np.ndarray:
    """(G,) the fold of each group: folds alike in images and in images of each class, no fold empty.

    The groups are dealt out one at a time, large ones first and among equals in a random order; each goes to the fold
    that has least of what the group holds, in shares of the whole, as scikit-learn's ``StratifiedGroupKFold`` does for
    one label an image. Outside of every fold at least two groups are left, for training and validation.

    Args:
        groups: at least ``folds`` of them; of two folds at least four.
        folds: K.
        seed: of the draw; the same for every fold.
    """
    counts = np.column_stack([groups.sizes, groups.class_counts]).astype(np.float64)
    weight = 1.0 / np.maximum(counts.sum(axis=0), 1.0) ** 2
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(groups))
    held, sizes = np.zeros((folds, counts.shape[1])), np.zeros(folds, dtype=np.int64)
    result = np.empty(len(groups), dtype=np.int64)
    order = shuffled[np.argsort(-groups.sizes[shuffled], kind="stable")]
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        allowed = sizes < len(groups) - 2
        if (sizes == 0).sum() >= left:
            allowed &= sizes == 0
        load = np.where(allowed, held @ (weight * counts[group]), np.inf)
        fold = int(np.lexsort((held[:, 0], load))[0])
        result[group] = fold
        held[fold] += counts[group]
        sizes[fold] += 1
    return result


def _check_folds(given: np.ndarray, groups: Groups, site: str, folds: int) -> None:
    if (given != "").any():
        raise PartitionError(
            f"site {site}: {int((given != '').sum())} of {len(given)} images have a given split, and partition.folds "
            "draws the test images itself",
            "Set dataset.split=none (a table: drop its split column), or partition.folds=0.",
        )
    least = max(folds, 4 if folds == 2 else 3)
    if len(groups) < least:
        raise PartitionError(
            f"site {site} has {len(given)} image(s) in {len(groups)} group(s); {folds} folds need {least} groups",
            "Use fewer folds (partition.folds) or fewer sites, or leave this site out.",
        )


def _check_given(given: np.ndarray, site: str) -> None:
    counts = {name: int((given == name).sum()) for name in ("", *SPLITS)}
    remedy = "Fill the split column for every image, or set dataset.split=none (a table: drop its split column)."
    if counts[""]:
        raise PartitionError(f"site {site}: {counts['']} of {len(given)} images have no split, the others have", remedy)
    for name in ("train", "test"):
        if not counts[name]:
            raise PartitionError(
                f"site {site}: the given split leaves it {counts['train']} training, {counts['val']} validation and "
                f"{counts['test']} test images",
                f"Give it {name} images, let each site be split by group (dataset.split=none), or use other sites.",
            )


def _val_rows(
    manifest: Manifest, groups: Groups, given: np.ndarray, site: str, fraction: float, seed: int
) -> np.ndarray:
    """(N,) bool: training rows that become validation, whole groups of them."""
    train = given == "train"
    inside = np.unique(groups.of_row[train])
    clean = np.setdiff1d(inside, groups.of_row[~train])
    candidates = clean if len(clean) >= 2 else inside
    if len(inside) < 2:
        raise PartitionError(
            f"site {site} has {int(train.sum())} training image(s) in {len(inside)} group(s) of its given split; "
            "validation needs a group of its own",
            "Give it training images of 2 groups (patients, lesions) or more, or set dataset.split=none (a table: drop "
            "its split column).",
        )
    only_train = Groups.of(manifest.subset(train))  # sizes and labels as seen in training
    position = np.searchsorted(only_train.names, groups.names[candidates])
    fraction = min(fraction * int(train.sum()) / int(only_train.sizes[position].sum()), 0.5)
    val = _cut(only_train, position, fraction, seed, keep=1)
    return train & np.isin(groups.names[groups.of_row], only_train.names[val])


def _cut(groups: Groups, among: np.ndarray, fraction: float, seed: int, keep: int) -> np.ndarray:
    """Choose some of the groups ``among`` (indices) that hold about ``fraction`` of their images; ``keep`` are left."""
    size = int(np.clip(round(fraction * len(among)), 1, len(among) - keep))
    counts = np.column_stack([groups.sizes, groups.class_counts])[among].astype(np.float64)
    totals = counts.sum(axis=0)
    present = totals > 0
    best, best_error = among[:size], np.inf
    for chosen in _candidates(groups.strata[among], size, seed):
        share = counts[chosen].sum(axis=0)[present] / totals[present]
        error = abs(share[0] - fraction)
        if len(share) > 1:  # and each class that would be taken away whole, with nothing left to train on
            error += np.abs(share[1:] - fraction).mean() + (share[1:] == 1).mean()
        if error < best_error:
            best, best_error = among[chosen], float(error)
    return best


def _candidates(strata: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Seeded draws of ``size`` positions, stratified where that can be (it needs two groups a stratum)."""
    state = seed % 2**32
    pooled = strata.copy()
    names, counts = np.unique(strata, return_counts=True)
    pooled[np.isin(strata, names[counts < 2])] = -1
    if (pooled == -1).sum() == 1:
        pooled[pooled == -1] = names[counts.argmax()]
    kinds = len(np.unique(pooled))
    if 1 < kinds <= min(size, len(strata) - size):
        yield from stratified(pooled, size, CANDIDATES, state)
    else:
        yield from shuffled(len(strata), size, CANDIDATES, state)
