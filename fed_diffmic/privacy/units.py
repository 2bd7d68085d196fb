"""Whose data a site trained on, without names: keyed digests of images and of patients.

What was spent belongs to the units, not to a file or a configuration: a data set that shares an image, its pixels or a
patient with an earlier one inherits what was spent on it, whatever else was added, removed, renamed or encoded anew.
Digests are HMAC-SHA256 under a secret of the site, cut to 16 bytes, so that the ledger's folder alone tells nobody
whether a known image or a known patient number is in it.

Sets of before there were pixels hold none; they are linked by files and by patients as they always were.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fed_diffmic.data.site import Examples
from fed_diffmic.errors import LedgerError, ModelFileError
from fed_diffmic.files import load_tensors, save_tensors

WIDTH = 16
_AGAIN = "Put {}.safetensors back from the backup: without it nobody knows on whom was spent."


@dataclass(frozen=True, eq=False)
class UnitSet:
    """The units of one training set, ``n`` images sorted by digest.

    Attributes:
        images: ``(n,)`` of 16 bytes, each image's keyed digest, by the content of its file.
        patients: ``(n,)`` of 16 bytes, the digest of each image's group (patient, lesion).
        pixels: ``(n,)`` of 16 bytes, the digest of what each image decodes to; none: not known.
        name: digest of all: the same units have the same name.
    """

    images: np.ndarray
    patients: np.ndarray
    pixels: np.ndarray | None = None
    name: str = field(default="")

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.images.tobytes() + b"\0" + self.patients.tobytes())
        if self.pixels is not None:
            digest.update(b"\0" + self.pixels.tobytes())
        object.__setattr__(self, "name", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def most_images(self) -> int:
        """Images of the patient that has most of them; 0 in an empty set."""
        return int(np.unique(self.patients, return_counts=True)[1].max()) if len(self) else 0


def unit_set(examples: Examples, secret: bytes) -> UnitSet:
    """The units of a site's training examples.

    Args:
        examples: ``keys`` name an image's content, ``groups`` its patient.
        secret: the site's own, at least 16 bytes.

    Raises:
        ValueError: the secret is too short.
    """
    columns = list(unit_digests(examples, secret))
    if examples.pixels is not None:
        columns.append(_keyed("pixels", [str(pixels) for pixels in examples.pixels], secret))
    whole = np.concatenate([_bytes(column) for column in columns], axis=1)
    order = np.frombuffer(whole.tobytes(), dtype=f"V{WIDTH * len(columns)}").argsort(kind="stable")
    return UnitSet(columns[0][order], columns[1][order], columns[2][order] if len(columns) > 2 else None)


def unit_digests(examples: Examples, secret: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Keyed digests of each example's image and patient, ``(n,)`` of 16 bytes each, in the order of the examples.

    Raises:
        ValueError: the secret is too short.
    """
    if len(secret) < WIDTH:
        raise ValueError("the secret of the unit digests is too short")
    images = _keyed("image", [str(int(key)) for key in examples.keys], secret)
    return images, _keyed("patient", [str(group) for group in examples.groups], secret)


def _keyed(kind: str, names: Sequence[str], secret: bytes) -> np.ndarray:
    keyed = {n: hmac.new(secret, f"{kind}\0{n}".encode(), hashlib.sha256).digest()[:WIDTH] for n in set(names)}
    return np.array([keyed[n] for n in names], dtype=f"V{WIDTH}")


def save_units(folder: Path, units: UnitSet) -> Path:
    """Write a set under its name, durably, unless it is there."""
    path = folder / f"{units.name}.safetensors"
    if not path.exists():
        columns = {"images": units.images, "patients": units.patients, "pixels": units.pixels}
        save_tensors(path, {name: _bytes(column) for name, column in columns.items() if column is not None})
        path.chmod(0o600)
    return path


def load_units(folder: Path, name: str) -> UnitSet:
    """Read a set and check that it is the one that its name says.

    Raises:
        LedgerError: it is missing or was changed.
    """
    try:
        tensors = load_tensors(folder / f"{name}.safetensors")
        pixels = _views(tensors["pixels"]) if "pixels" in tensors else None
        units = UnitSet(_views(tensors["images"]), _views(tensors["patients"]), pixels)
    except (ModelFileError, KeyError, ValueError) as error:
        raise LedgerError("a unit file of the privacy ledger is missing or damaged", _AGAIN.format(name)) from error
    if units.name != name:
        raise LedgerError("a unit file of the privacy ledger was changed", _AGAIN.format(name))
    return units


def shared_patterns(units: UnitSet, others: Sequence[UnitSet]) -> np.ndarray:
    """As how many patients of each earlier set the patients of a set took part in its training.

    Two images belong together if their files, what they decode to, or their patients are the same; so do all that are
    linked by others. A patient was in an earlier set if an image that belongs to it was: one who was given another
    number is found by the images, an image that was exported anew by its patient or its pixels, and one that was both,
    one after the other, by what the sets in between hold. Too much may be linked (two black images), never too little.

    A patient who had several numbers in an earlier set (each image counted as a patient) had as many gradients there,
    each clipped by itself. A number that this set gives to somebody else is not taken to have been the patient's.

    Args:
        units: of the training set in question.
        others: ``S`` earlier sets.

    Returns:
        ``(P, S)`` int64, each combination once, 0 where a patient was not; ``(0, S)`` for an empty set.
    """
    if not len(units):
        return np.zeros((0, len(others)), dtype=np.int64)
    if not others:
        return np.zeros((1, 0), dtype=np.int64)
    wholes = _linked([units, *others])
    own, first = np.unique(units.patients, return_index=True)
    whole, columns = wholes[0][first], []
    for other, of in zip(others, wholes[1:], strict=True):
        names, first = np.unique(other.patients, return_index=True)
        nobodys = of[first][~np.isin(names, own)]  # numbers that nobody has in the set in question
        found, times = np.unique(nobodys, return_counts=True)
        place = np.searchsorted(found, whole).clip(max=max(0, len(found) - 1))
        renumbered = np.where(np.isin(whole, found), times[place] if len(found) else 0, 0)
        columns.append(np.maximum(np.isin(whole, of), renumbered + np.isin(own, names)))
    return np.unique(np.stack(columns, axis=1).astype(np.int64), axis=0)


def _linked(sets: Sequence[UnitSet]) -> list[np.ndarray]:
    """For each set the number of the whole that each of its images belongs to, ``(n,)``."""
    images = np.concatenate([units.images for units in sets])
    rows = [np.arange(len(images)), np.arange(len(images))]
    columns = [images, np.concatenate([units.patients for units in sets])]
    known = [np.full(len(units), units.pixels is not None) for units in sets]
    pixels = [units.pixels for units in sets if units.pixels is not None]
    if pixels:
        rows.append(np.flatnonzero(np.concatenate(known)))
        columns.append(np.concatenate(pixels))
    # A graph of images (by their place) and digests; what hangs together is one whole.
    nodes, place = len(images), []
    for column in columns:
        names, of = np.unique(column, return_inverse=True)
        place.append(nodes + of)
        nodes += len(names)
    from scipy.sparse import coo_array  # a tenth of a second, for whoever has no such units
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate(rows), np.concatenate(place)
    _, whole = connected_components(coo_array((np.ones(len(edges[0])), edges), shape=(nodes, nodes)), directed=False)
    return np.split(whole[: len(images)], np.cumsum([len(units) for units in sets])[:-1])


def _bytes(digests: np.ndarray) -> np.ndarray:
    return np.frombuffer(digests.tobytes(), dtype=np.uint8).reshape(-1, WIDTH)


def _views(rows: np.ndarray) -> np.ndarray:
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != WIDTH:
        raise ValueError("not digests")
    return np.frombuffer(rows.tobytes(), dtype=f"V{WIDTH}")
