"""Images that are turned, inverted or unlike the others in brightness: found by comparison with the site's own images.

No rule is written down for any modality. For each of the two mistakes the site's images themselves say what is
usual:

1. Of every image the *views* are made that a mistake would have made of it (turned by 90, 180 and 270 degrees;
   inverted).
2. A linear score is fitted (ridge regression) that is high for images as they are and low for their other views, and
   each image is scored by a fit that has not seen it (cross-validation), nor any image that already looked wrong.
3. An image whose other view scores clearly higher than itself looks like the others only when turned or inverted.

The same scores are the check of the check: an image that we turn ourselves has the mirrored difference. So the share
of images whose own view scores highest (*agreement*) says whether the images have a common orientation at all, and
how many score nearly alike in two views says how many would be accused by chance. Where either is bad (dermoscopy),
that is said instead of guessed.

If most of a site's images are wrong in the same way, that is what is usual there: nothing here can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.linalg import solve
from torch.nn.functional import adaptive_avg_pool2d

from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import Manifest
from fed_diffmic.seeding import numpy_generator

LEAST_IMAGES = 40
"""Fewer images do not say what is usual."""

MOST_IMAGES = 10_000
"""Of more images a seeded sample is looked at."""

AGREEMENT = 0.8
"""Share of images whose own view must score highest; with less there is no common orientation (or intensity)."""

CLEAR = 0.25
"""An image is accused when another view scores higher by this share of the usual (median) difference or more."""

DOUBTFUL = 0.03
"""Most images whose other view may score higher, but not clearly: normal differences would then accuse about 2 %."""

WITHOUT_ORIENTATION = ("dermoscopy",)
"""Modalities whose images have no up or down, whatever the statistics of a site's equipment say."""

_SIDE = 64  # pixels; enough to tell up from down
_FIT = 1500  # images that a fit uses
_FOLDS = 5
_PENALTY = 1.0  # of the ridge, relative to the mean variance of the standardised features
_CELL = 8
_BINS = 8
_RINGS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.01)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_CHUNK = 256
_FAR = 6.0  # robust standard deviations
_FLAT = 2.0  # grey levels: less contrast than this is no image

Images = Callable[[np.ndarray], torch.Tensor]


@dataclass(frozen=True, eq=False)
class ViewCheck:
    """What one comparison of views found.

    Attributes:
        checked: whether the images agree enough for the result to mean something.
        agreement: share of images whose own view scores highest.
        recall: share of images that would be found, had they been changed in this way (for each other view).
        best: ``(n,)`` index of the view to which a wrong image must be brought; 0 where it is as the others are.
    """

    checked: bool
    agreement: float
    recall: tuple[float, ...]
    best: np.ndarray


@dataclass(frozen=True, eq=False)
class Outliers:
    """What was found among the images looked at.

    Attributes:
        position: ``(n,)`` positions (in the rows given) of the images looked at.
        orientation: views turned counter-clockwise by 0, 90, 180, 270 degrees; none where the modality has no up.
        inversion: views as they are and inverted.
        unusual: ``(n,)`` bool, brightness or contrast far from the others' (and neither inverted nor flat).
        flat: ``(n,)`` bool, one grey level throughout.
    """

    position: np.ndarray
    orientation: ViewCheck | None
    inversion: ViewCheck
    unusual: np.ndarray
    flat: np.ndarray

    @property
    def turned(self) -> np.ndarray:
        """``(n,)`` bool."""
        return np.zeros(len(self.position), bool) if self.orientation is None else self.orientation.best > 0


def find_outliers(
    images: Images, rows: np.ndarray, *, modality: str = "none", seed: int = 0, most: int = MOST_IMAGES
) -> Outliers | None:
    """Compare the images with each other.

    Args:
        images: from rows to ``(n, 3, H, H)`` uint8, as :meth:`ImageCache.images`.
        rows: ``(N,)``.
        modality: of the configuration; decides only whether orientation means anything.
        seed: of the sample and the folds.
        most: images looked at.

    Returns:
        what was found; None if there are fewer than ``LEAST_IMAGES``.
    """
    if len(rows) < LEAST_IMAGES:
        return None
    order = numpy_generator(seed, "outliers").permutation(len(rows))[:most]
    position = np.sort(order)
    small = _small(images, np.asarray(rows)[position])
    unusual, flat = _intensity(small)
    inversion = compare_views([_histogram(small), _histogram(255 - small)], seed)
    grey = small.mean(axis=1)
    grey[inversion.best == 1] = 255 - grey[inversion.best == 1]
    orientation = None
    if modality not in WITHOUT_ORIENTATION:
        orientation = compare_views([_layout(np.rot90(grey, k, axes=(1, 2))) for k in range(4)], seed)
        orientation.best[flat] = 0
    inversion.best[flat] = 0
    return Outliers(position, orientation, inversion, unusual & ~flat & (inversion.best == 0), flat)


def compare_views(views: list[np.ndarray], seed: int) -> ViewCheck:
    """Which images look like the others only in another view.

    Args:
        views: features ``(n, d)`` of each view; first the images as they are.
        seed: of the folds.
    """
    stacked = _standardised(views)
    scores = _cross_scores(stacked, np.ones(stacked.shape[1], bool), seed)
    usual = scores[0] > scores[1:].max(axis=0)
    if usual.mean() >= AGREEMENT:  # once more, without those that teach what is wrong
        scores = _cross_scores(stacked, usual, seed)
    margins = scores[0] - scores[1:]  # (V - 1, n): positive where the image as it is looks more usual
    least = margins.min(axis=0)
    threshold = CLEAR * float(np.median(least))
    agreement, doubtful = float((least > 0).mean()), float(((least <= 0) & (least > -threshold)).mean())
    recall = tuple(float((row > threshold).mean()) for row in margins)
    if agreement < AGREEMENT or doubtful > DOUBTFUL:
        return ViewCheck(False, agreement, recall, np.zeros(len(least), np.int64))
    return ViewCheck(True, agreement, recall, np.where(least < -threshold, 1 + margins.argmin(axis=0), 0))


def _standardised(views: list[np.ndarray]) -> np.ndarray:
    """``(V, n, d)`` float32, each feature with mean 0 and deviation 1 over images and views."""
    stacked = np.stack(views).astype(np.float32)
    stacked -= stacked.mean(axis=(0, 1))
    stacked /= stacked.std(axis=(0, 1)) + 1e-6
    return stacked


def _cross_scores(stacked: np.ndarray, teaching: np.ndarray, seed: int) -> np.ndarray:
    """``(V, n)``: how usual each view looks to a ridge regression fitted on other images (+1 as they are).

    Args:
        stacked: ``(V, n, d)``.
        teaching: ``(n,)`` bool, images that may be fitted on.
        seed: of the folds.
    """
    count, n, width = stacked.shape
    order = numpy_generator(seed, "outliers", "folds").permutation(n)
    fold = np.empty(n, np.int64)
    fold[order] = np.arange(n) % _FOLDS
    used = teaching.copy()
    used[order[_FIT:]] = False
    scores = np.empty((count, n), np.float32)
    for part in range(_FOLDS):
        train = used & (fold != part)
        design = stacked[:, train].reshape(-1, width).astype(np.float64)
        wanted = np.repeat([1.0] + [-1.0 / (count - 1)] * (count - 1), int(train.sum()))
        penalty = _PENALTY * len(design) / _FOLDS * np.eye(width)
        weights = solve(design.T @ design + penalty, design.T @ wanted, assume_a="pos")
        scores[:, fold == part] = stacked[:, fold == part] @ weights
    return scores


def _small(images: Images, rows: np.ndarray) -> np.ndarray:
    """``(n, 3, 64, 64)`` float32, 0 to 255."""
    parts = [
        adaptive_avg_pool2d(images(rows[start : start + _CHUNK]).float(), _SIDE).numpy()
        for start in range(0, len(rows), _CHUNK)
    ]
    return np.concatenate(parts)


def _layout(grey: np.ndarray) -> np.ndarray:
    """What is bright where, and which way edges run: ``(n, d)`` from ``(n, 64, 64)``, whatever the contrast."""
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    grey = grey / (grey.std(axis=(1, 2), keepdims=True) + 1)
    down, across = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    across[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    strength = np.hypot(down, across)
    direction = np.floor(np.arctan2(down, across) / (2 * np.pi) * _BINS).astype(np.int64) % _BINS
    edges = [np.sqrt(_cells(strength * (direction == b), _CELL)) for b in range(_BINS)]
    return np.concatenate([_cells(grey, _CELL // 2), *edges], axis=1)


def _cells(plane: np.ndarray, cell: int) -> np.ndarray:
    """Means over ``cell x cell`` squares, flattened."""
    n, side, _ = plane.shape
    return plane.reshape(n, side // cell, cell, side // cell, cell).mean(axis=(2, 4)).reshape(n, -1)


def _histogram(small: np.ndarray) -> np.ndarray:
    """How bright, in each channel and from the middle to the edge: ``(n, d)``, the same however the image is turned."""
    n, channels = small.shape[:2]
    flat = small.reshape(n, channels, -1)
    mean, deviation = flat.mean(axis=2), flat.std(axis=2) + 1
    skew = ((flat - mean[:, :, None]) ** 3).mean(axis=2) / deviation**3
    quantiles = np.quantile(flat, _QUANTILES, axis=2).transpose(1, 0, 2).reshape(n, -1)
    axis = np.abs(np.arange(_SIDE) - (_SIDE - 1) / 2) / (_SIDE / 2)
    distance = np.maximum(axis[:, None], axis[None, :])
    grey = small.mean(axis=1)
    rings = [grey[:, (distance >= low) & (distance < high)].mean(axis=1) for low, high in pairwise(_RINGS)]
    return np.concatenate([quantiles, mean, deviation, skew, np.stack(rings, axis=1)], axis=1)


def _intensity(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images whose mean or contrast is far from the others' (median and scaled absolute deviation), and flat ones."""
    grey = small.mean(axis=1).reshape(len(small), -1)
    mean, contrast = grey.mean(axis=1), grey.std(axis=1)
    far = _distance(mean) > _FAR
    far |= _distance(np.log(contrast + 1)) > _FAR
    return far, contrast < _FLAT


def _distance(values: np.ndarray) -> np.ndarray:
    centre = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - centre))
    return np.abs(values - centre) / max(float(spread), 1e-3)


def report_outliers(found: Outliers, manifest: Manifest, findings: Findings) -> None:
    """Add what was found to the site's findings; names go to the findings file only.

    Args:
        found: positions are rows of ``manifest``.
        manifest: the site's images.
        findings: where to add.
    """
    lines = manifest.table["line"].to_numpy()[found.position]
    names = manifest.table["image"].to_numpy()[found.position]

    def add(code: str, chosen: np.ndarray, message: str, remedy: str) -> None:
        if chosen.any():
            findings.add(
                code,
                "warning",
                message,
                table=manifest.source,
                rows=lines[chosen],
                field="image",
                remedy=remedy,
                names=names[chosen],
            )

    if found.orientation is not None:
        for quarter in (1, 2, 3):
            add(
                f"turned-{90 * quarter}",
                found.orientation.best == quarter,
                f"look like the others only when turned by {90 * quarter} degrees counter-clockwise",
                "Look at them; turn those that lie wrong, or write their orientation into the files (EXIF).",
            )
    add(
        "inverted",
        found.inversion.best == 1,
        "look like the others only when black and white are exchanged",
        "Look at them; export those again with the photometric interpretation of the others.",
    )
    add("unusual-intensity", found.unusual, "are far brighter, darker, flatter or harsher than the others", "")
    add("flat-image", found.flat, "hold one grey level throughout", "Leave them out of the table.")
