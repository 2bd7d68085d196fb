"""Augmentation and normalisation of image batches, on tensors.

Flip and rotation, as in the paper's training, within what each modality bears:

===========  ==================  =========  ==========  ======================================================
modality     flips               rotation   corners     why
===========  ==================  =========  ==========  ======================================================
dermoscopy   both axes           any angle  reflected   a lesion has no up or down; skin goes on at the border
fundus       both axes           any angle  black       a mirrored eye is the other eye; the field is a disc
ultrasound   horizontal          +-15 deg   black       the probe may be turned round, but depth is downwards
chest        none                +-10 deg   black       a mirrored radiograph is a patient with situs inversus:
                                                        the heart's side is anatomy, patients are slightly tilted
none         none                none       -           nothing is known: nothing is safe (set dataset.modality)
===========  ==================  =========  ==========  ======================================================

What happens to an image follows from (seed, site, round, key of the image) alone: neither the batch it
is in, nor its place there, nor the device's random state matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """What a modality bears: flips along each axis, largest angle in degrees, what fills the corners."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    degrees: float = 0.0
    padding: str = "zeros"


AUGMENTATIONS = {
    "dermoscopy": Augmentation(True, True, 180.0, "reflection"),
    "fundus": Augmentation(True, True, 180.0, "zeros"),
    "ultrasound": Augmentation(True, False, 15.0, "zeros"),
    "chest": Augmentation(False, False, 10.0, "zeros"),
    "none": Augmentation(),
}


@dataclass(frozen=True)
class Draws:
    """What was drawn for n images: flips (n,) bool and angles (n,) in degrees, counter-clockwise."""

    horizontal: np.ndarray
    vertical: np.ndarray
    degrees: np.ndarray


def draw(keys: np.ndarray, *, modality: str, seed: int, site: str, round: int) -> Draws:
    """Draw each image's flips and angle from a hash of (seed, site, round, key).

    Raises:
        KeyError: unknown modality.
    """
    what = AUGMENTATIONS[modality]
    prefix = hashlib.blake2b(f"augment\0{seed}\0{site}\0{round}\0".encode(), digest_size=24)
    words = np.empty((len(keys), 3), dtype=np.uint64)
    for i, key in enumerate(np.asarray(keys).tolist()):
        digest = prefix.copy()
        digest.update(str(key).encode())
        words[i] = np.frombuffer(digest.digest(), dtype="<u8")
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return Draws(
        horizontal=(uniform[:, 0] < 0.5) & what.flip_horizontal,
        vertical=(uniform[:, 1] < 0.5) & what.flip_vertical,
        degrees=(2 * uniform[:, 2] - 1) * what.degrees,
    )


def augment(images: torch.Tensor, keys: np.ndarray, *, modality: str, seed: int, site: str, round: int) -> torch.Tensor:
    """Flip and rotate each image, in one resampling.

    Args:
        images: (n, 3, H, H) uint8, on any device.
        keys: (n,) integers, each image's own number (``ImageCache.keys``).
        modality: a key of :data:`AUGMENTATIONS`.
        seed: of the run.
        site: name of the site.
        round: number of the round, over the stages of a run.

    Returns:
        (n, 3, H, H) uint8; equals torchvision's ``v2.functional`` flips followed by ``rotate``
        (bilinear, expand=False) within rounding where the corners are black.

    Raises:
        KeyError: unknown modality.
    """
    what = AUGMENTATIONS[modality]
    if what == Augmentation() or not len(images):
        return images
    drawn = draw(keys, modality=modality, seed=seed, site=site, round=round)
    grid = functional.affine_grid(_matrices(drawn).to(images.device), list(images.shape), align_corners=False)
    moved = functional.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode=what.padding, align_corners=False
    )
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def _matrices(drawn: Draws) -> torch.Tensor:
    """(n, 2, 3): where in the input each output pixel comes from (x right, y down): rotate back, then unflip."""
    angle = drawn.degrees * (math.pi / 180)
    x, y = 1.0 - 2.0 * drawn.horizontal, 1.0 - 2.0 * drawn.vertical
    matrices = np.zeros((len(angle), 2, 3), dtype=np.float32)
    matrices[:, 0, 0], matrices[:, 0, 1] = x * np.cos(angle), -x * np.sin(angle)
    matrices[:, 1, 0], matrices[:, 1, 1] = y * np.sin(angle), y * np.cos(angle)
    return torch.from_numpy(matrices)


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Scale intensities to [0, 1], subtract ``mean`` and divide by ``std`` for each channel.

    Args:
        images: (n, 3, H, H) uint8.
        mean, std: three numbers each, from the run's configuration.

    Returns:
        (n, 3, H, H) float32.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    shift = torch.tensor(
        [-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=images.device
    ).view(1, -1, 1, 1)
    return images.float().mul_(scale).add_(shift)
