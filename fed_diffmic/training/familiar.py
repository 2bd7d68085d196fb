"""Is an image like those of this site? Distance of its features to the means of the classes.

The features are those of the encoder that sees the whole image (the guidance network's; the plain classifier's own).
Of half of the site's images come the mean of each class and one covariance for all, shrunk (Ledoit and Wolf 2004), of
which the distance to the nearest class is Mahalanobis' (Lee et al. 2018, section 2.1); of the other half, which no mean
has seen, comes the threshold: that distance which a share of them does not exceed, by the rank of
:mod:`fed_diffmic.training.conformal`. So no more than that share of images like the site's own are warned of.

It tells images that look different: another modality, an inverted or empty one. It does not tell a rare disease.

Everything is made and kept at the site: means of few images may tell something of them. ``n`` images, ``W`` features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fed_diffmic.data.transforms import normalise
from fed_diffmic.errors import DataError
from fed_diffmic.models.diffmic import DiffMIC
from fed_diffmic.models.guidance import GuidanceNetwork
from fed_diffmic.models.plain import PlainClassifier
from fed_diffmic.training.conformal import rank_of
from fed_diffmic.training.stage import StageModule

LEVELS = (0.99, 0.95)
LEAST_OF_CLASS = 3


@torch.no_grad()
def image_features(module: StageModule, images: torch.Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """Features ``(n, W)`` float64 of decoded images ``(n, 3, H, H)`` uint8, in evaluation mode."""
    torch.set_num_threads(module.spec.threads)
    module.to(device).eval()
    network = module.network.guidance if isinstance(module.network, DiffMIC) else module.network
    inputs = normalise(images.to(device), module.spec.mean, module.spec.std)
    if isinstance(network, GuidanceNetwork):
        found = network.global_encoder(inputs).mean(dim=(2, 3))
    elif isinstance(network, PlainClassifier):
        found = network.encoder(inputs)
    else:
        raise TypeError(f"a network of kind {type(network).__name__} has no encoder")
    return np.asarray(found.float().cpu().numpy(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Familiar:
    """What a site's images look like.

    Attributes:
        means: ``(K, W)`` of classes that have images enough, or of all images.
        precision: ``(W, W)`` inverse of the covariance.
        threshold: distances above it are warned of.
        level: share of the site's own images that it was made to exceed.
        n: images that it rests on.
    """

    means: np.ndarray
    precision: np.ndarray
    threshold: float
    level: float
    n: int

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Distance of each image's features ``(n, W)`` to the nearest class, ``(n,)``."""
        return nearest(features, self.means, self.precision)

    def unfamiliar(self, features: np.ndarray) -> np.ndarray:
        """Which images are unlike the site's, ``(n,)`` bool."""
        return self.distances(features) > self.threshold


def nearest(features: np.ndarray, means: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of each row of ``features`` to the nearest of ``means``."""
    apart = [np.einsum("nw,wv,nv->n", features - mean, precision, features - mean, optimize=True) for mean in means]
    return np.asarray(np.sqrt(np.maximum(np.min(apart, axis=0), 0.0)))


def familiar(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, task: str, seed: int = 0) -> Familiar:
    """What images look like, from their features.

    Args:
        features: ``(n, W)``.
        labels: ``(n,)`` class index; multilabel ``(n, C)`` 0/1.
        groups: ``(n,)`` patients, who stay whole when the images are divided.
        seed: of the division.

    Raises:
        DataError: too few images for a threshold.
    """
    from sklearn.covariance import LedoitWolf

    first = half(groups, seed)
    x, rest = features[first], features[~first]
    levels = [level for level in LEVELS if rank_of(len(rest), level) is not None]
    if not levels or len(x) < 2:
        raise DataError(
            f"{len(features)} images are too few to say what is unusual",
            "Give 50 images or more, better some hundreds, no more than one in 8 of them of the same patient.",
        )
    truth = labels[first] > 0 if task == "multilabel" else labels[first][:, None] == np.arange(int(labels.max()) + 1)
    enough = [column for column in truth.T if column.sum() >= LEAST_OF_CLASS]
    means = np.stack([x[column].mean(axis=0) for column in enough] or [x.mean(axis=0)])
    closest = np.argmin([((x - mean) ** 2).sum(axis=1) for mean in means], axis=0)
    precision = LedoitWolf(assume_centered=True).fit(x - means[closest]).precision_
    rank = rank_of(len(rest), levels[0])
    assert rank is not None
    threshold = float(np.sort(nearest(rest, means, precision))[rank - 1])
    return Familiar(means, precision, threshold, levels[0], len(features))


def half(groups: np.ndarray, seed: int) -> np.ndarray:
    """Which images belong to the first half, ``(n,)`` bool: about half of them, patients whole."""
    names, of_group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    chosen = np.zeros(len(names), dtype=bool)
    chosen[order[before < len(groups) / 2]] = True
    return np.asarray(chosen[of_group])
