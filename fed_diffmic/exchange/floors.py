"""Floors: how much an update, a figure and a sequence of them must rest on.

What may be set: :class:`fed_diffmic.config.policy_floors.Floors`.

Upper bounds alone let a coordinator ask for an update of one image. These are the lower bounds; the site counts what
went in (:mod:`fed_diffmic.exchange.exposure`) and keeps what left before (:mod:`client.floors`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.exchange.failures import FLOOR_REUSE, FLOOR_SHARE, FLOOR_STEP, FLOOR_UPDATE, SiteError

_SMALLEST = 1e-10  # of a Gram matrix of whole numbers, below the largest eigenvalue: nothing but rounding


@dataclass(frozen=True, eq=False)
class Exposure:
    """What goes into one local update.

    Attributes:
        counts: ``(n,)`` int64, in how many steps each training image takes part.
        steps: optimizer steps.
        step_images, step_patients: images and patients (groups) of the step that has fewest.
        images, patients: distinct ones in all steps.
    """

    counts: np.ndarray
    steps: int
    step_images: int
    step_patients: int
    images: int
    patients: int


@dataclass(frozen=True)
class Basis:
    """What the metrics or counts of a reply rest on.

    Attributes:
        images, patients: that went into the metrics (distinct ones).
        patients_of_splits: of training, validation and test, for the counts of images.
        patients_of_classes: with training images of each class, for the counts of these; none: not known.
    """

    images: int
    patients: int
    patients_of_splits: tuple[int, ...] = ()
    patients_of_classes: tuple[int, ...] = ()


def check_exposure(floors: Floors, planned: Exposure) -> None:
    """Refuse an update that would rest on too little.

    Raises:
        SiteError: names the floor and the number, for the site's own log.
    """
    rules = (
        (FLOOR_STEP, "step_images", planned.step_images),
        (FLOOR_STEP, "step_patients", planned.step_patients),
        (FLOOR_UPDATE, "update_images", planned.images),
        (FLOOR_UPDATE, "update_patients", planned.patients),
        (FLOOR_UPDATE, "steps", planned.steps),
    )
    for code, name, found in rules:
        if found < getattr(floors, name):
            raise SiteError(code, f"{name}: {found}; policy.floors.{name} is {getattr(floors, name)}")


def check_reuse(floors: Floors, planned: Exposure, uses: np.ndarray) -> None:
    """Refuse an update on few images that were in too many such updates.

    Args:
        uses: ``(n,)``, in how many updates on few images each training image was.

    Raises:
        SiteError: one of them was in ``few_rounds`` of them.
    """
    if is_few(floors, planned):
        most = int(uses[planned.counts > 0].max(initial=0))
        if most >= floors.few_rounds:
            raise SiteError(
                FLOOR_REUSE, f"an image was in {most} updates on few images; policy.floors.few_rounds is reached"
            )


def is_few(floors: Floors, planned: Exposure) -> bool:
    """Whether an update counts as one on few images."""
    return planned.images < floors.few_images


def check_share(floors: Floors, released: np.ndarray, patients: np.ndarray) -> None:
    """Refuse an update that, together with those before, would single out an image or a patient.

    Args:
        released: ``(R, n)`` how often each image is in each update of the stage, the one in question among them.
        patients: ``(n,)`` of which patient each image is, any numbers.

    Raises:
        SiteError: the share is above ``policy.floors.largest_share``.
    """
    if floors.largest_share >= 1 or not released.size:
        return
    _, of_patient = np.unique(patients, return_inverse=True)
    summed = np.zeros((len(released), of_patient.max() + 1))
    np.add.at(summed.T, of_patient, released.T)
    for what, counts in (("image", released), ("patient", summed)):
        share = largest_share(counts)
        if share > floors.largest_share + 1e-6:
            raise SiteError(
                FLOOR_SHARE,
                f"weighted sums of {len(released)} updates would leave one {what} a share of {share:.2f}; "
                f"policy.floors.largest_share is {floors.largest_share:g}. Whole passes over the images "
                "(stages.*.epochs, or steps that are a multiple of the batches) add nothing to it.",
            )


def largest_share(counts: np.ndarray) -> float:
    """How far some weighted sum of releases can single out one unit: 1 wholly, ``1 / b`` for one release of b units.

    Whoever knows the seed knows which images went into which update. If updates are sums of the images' own
    contributions, which holds for small steps from equal weights, then weights ``c`` give ``sum_j (c^T M)_j g_j``;
    the best ``c`` leaves of everything but unit ``j`` the fraction ``1 - h_j``, where ``h_j`` is the leverage, the
    ``j``-th diagonal element of the projection onto the rows of ``M`` (Hoaglin and Welsch 1978). Two updates that
    differ by one image give it leverage 1/2 or more, as many updates as images give 1.

    Args:
        counts: ``M``, ``(R, n)`` non-negative whole numbers.
    """
    rows = np.unique(np.asarray(counts, dtype=np.float64), axis=0)  # whole passes: the same row again and again
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > max(values.max(initial=0.0) * _SMALLEST, 0.0)
    basis = (vectors[:, kept] / np.sqrt(values[kept])).T @ rows
    return float((basis**2).sum(axis=0).max(initial=0.0))
