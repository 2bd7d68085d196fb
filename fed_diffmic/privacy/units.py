"""Whose data a site trained on, without names: keyed digests of images and of patients.

What was spent belongs to the units, not to a file or a configuration: a data set that shares an image or a patient with
an earlier one inherits what was spent on it, whatever else was added, removed or renamed. Digests are HMAC-SHA256
under a secret of the site, cut to 16 bytes, so that the ledger's folder alone tells nobody whether a known image or a
known patient number is in it.
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


@dataclass(frozen=True, eq=False)
class UnitSet:
    """The units of one training set, ``n`` images sorted by digest.

    Attributes:
        images: ``(n,)`` of 16 bytes, each image's keyed digest, by content.
        patients: ``(n,)`` of 16 bytes, the digest of each image's group (patient, lesion).
        name: digest of both: the same units have the same name.
    """

    images: np.ndarray
    patients: np.ndarray
    name: str = field(default="")

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.images.tobytes() + b"\0" + self.patients.tobytes())
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
    images, patients = unit_digests(examples, secret)
    both = np.concatenate([_bytes(images), _bytes(patients)], axis=1)
    order = np.frombuffer(both.tobytes(), dtype=f"V{2 * WIDTH}").argsort(kind="stable")
    return UnitSet(images[order], patients[order])


def unit_digests(examples: Examples, secret: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Keyed digests of each example's image and patient, ``(n,)`` of 16 bytes each, in the order of the examples.

    Raises:
        ValueError: the secret is too short.
    """
    if len(secret) < WIDTH:
        raise ValueError("the secret of the unit digests is too short")

    def digests(kind: str, names: Sequence[str]) -> np.ndarray:
        keyed = {n: hmac.new(secret, f"{kind}\0{n}".encode(), hashlib.sha256).digest()[:WIDTH] for n in set(names)}
        return np.array([keyed[n] for n in names], dtype=f"V{WIDTH}")

    images = digests("image", [str(int(key)) for key in examples.keys])
    patients = digests("patient", [str(group) for group in examples.groups])
    return images, patients


def save_units(folder: Path, units: UnitSet) -> Path:
    """Write a set under its name, durably, unless it is there."""
    path = folder / f"{units.name}.safetensors"
    if not path.exists():
        save_tensors(path, {"images": _bytes(units.images), "patients": _bytes(units.patients)})
        path.chmod(0o600)
    return path


def load_units(folder: Path, name: str) -> UnitSet:
    """Read a set and check that it is the one that its name says.

    Raises:
        LedgerError: it is missing or was changed.
    """
    try:
        tensors = load_tensors(folder / f"{name}.safetensors")
        units = UnitSet(_views(tensors["images"]), _views(tensors["patients"]))
    except (ModelFileError, KeyError, ValueError) as error:
        raise LedgerError("a unit file of the privacy ledger is missing or damaged") from error
    if units.name != name:
        raise LedgerError("a unit file of the privacy ledger was changed")
    return units


def shared_patterns(units: UnitSet, others: Sequence[UnitSet], unit: str) -> np.ndarray:
    """Which combinations of earlier sets the units of a set were in.

    A unit was in an earlier set if its image is, its patient is, or (unit patient) any of its images is: a patient
    who was given another number is still found by the images, an image that was exported anew by its patient.

    Args:
        units: of the training set in question.
        others: ``S`` earlier sets.
        unit: ``image`` or ``patient``.

    Returns:
        ``(P, S)`` bool, each combination once; ``(0, S)`` for an empty set.
    """
    if not len(units):
        return np.zeros((0, len(others)), dtype=bool)
    if not others:
        return np.zeros((1, 0), dtype=bool)
    member = np.stack([np.isin(units.images, o.images) | np.isin(units.patients, o.patients) for o in others], axis=1)
    if unit == "patient":
        _, of = np.unique(units.patients, return_inverse=True)
        merged = np.zeros((of.max() + 1, len(others)), dtype=bool)
        np.logical_or.at(merged, of, member)
        member = merged
    return np.unique(member, axis=0)


def _bytes(digests: np.ndarray) -> np.ndarray:
    return np.frombuffer(digests.tobytes(), dtype=np.uint8).reshape(-1, WIDTH)


def _views(rows: np.ndarray) -> np.ndarray:
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != WIDTH:
        raise ValueError("not digests")
    return np.frombuffer(rows.tobytes(), dtype=f"V{WIDTH}")
