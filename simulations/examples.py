"""A few test images of each class with what the guidance network looked at, for the report of public data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.data.site import SiteData
from fed_diffmic.inference.look import look
from fed_diffmic.inference.predictor import Predictor
from simulations.metrics import MethodResult

DRAWN = 2  # of each class, where the data are drawn and nothing else was asked for
LARGEST = 192  # pixels of the side that is kept


def wanted(config: SimulateConfig) -> int:
    """Images of each class that the report shows."""
    if config.run.examples is not None:
        return config.run.examples
    return DRAWN if config.dataset.name == "phantoms" else 0


def pick(sites: Mapping[str, SiteData], count: int, num_classes: int) -> list[tuple[str, int, int]]:
    """Site, position among its test images, and class of up to ``count`` images of each class.

    The first in the order of their content's digests: who is shown does not depend on any model. No image stands for
    two classes.
    """
    places = [(int(key), site, i) for site, data in sites.items() for i, key in enumerate(data.test.keys)]
    left, chosen = sorted(places), []
    for index in range(num_classes):
        taken = [place for place in left if _has(sites[place[1]].test.labels[place[2]], index)][:count]
        chosen += [(site, i, index) for _, site, i in taken]
        left = [place for place in left if place not in taken]
    return chosen


def _has(label: np.ndarray, index: int) -> bool:
    return bool(label[index]) if label.ndim else int(label) == index


def example_tensors(
    guidance: Mapping[str, Predictor], final: MethodResult, sites: Mapping[str, SiteData], count: int
) -> dict[str, np.ndarray]:
    """What :func:`fed_diffmic.reporting.examples.load_examples` reads.

    Args:
        guidance: the guidance network that each site uses.
        final: the federation's predictions on the test images.
        sites: their data.
        count: images of each class.
    """
    classes = next(iter(guidance.values())).spec.num_classes
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("images", "saliency", "boxes", "attention")}
    chosen = pick(sites, count, classes)
    probabilities = np.array([final.test[site].probabilities[i] for site, i, _ in chosen]).reshape(-1, classes)
    for (site, i, _), stated in zip(chosen, probabilities, strict=True):
        images = sites[site].test.images(np.array([i]))
        seen = look(guidance[site], images[0].numpy(), int(stated.argmax()))
        kept["images"].append(_small(images)[0])
        kept["saliency"].append(seen.saliency)
        kept["boxes"].append(seen.boxes)
        kept["attention"].append(seen.attention)
    if not chosen:
        return {}
    stacked = {name: np.stack(values) for name, values in kept.items()}
    return {
        **stacked,
        "probabilities": probabilities.astype(np.float32),
        "classes": np.array([index for _, _, index in chosen], dtype=np.int64),
    }


def _small(images: torch.Tensor) -> np.ndarray:
    """``(n, 3, h, h)`` uint8 of at most :data:`LARGEST` pixels a side."""
    if images.shape[-1] > LARGEST:
        images = F.interpolate(images.float(), size=(LARGEST, LARGEST), mode="area").round().to(torch.uint8)
    return images.numpy()
