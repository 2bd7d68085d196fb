"""Which images a site's reference warns of: a run's model, each site's held-out images, and images of other kinds.

``python -m benchmarks.unlike [--most N] RUN_DIR``: at each site of a finished simulation the reference is made of its
validation images (:mod:`fed_diffmic.training.familiar`) and asked about its test images as they are, inverted, turned
by 90 degrees, empty (black), of noise, and about drawn images of another modality. Printed is the share warned of: of
the first, false alarms; of the others, what is found.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fed_diffmic.config.compose import compose
from fed_diffmic.data.phantoms import chest, dermoscopy
from fed_diffmic.data.phantoms.canvas import site_style
from fed_diffmic.data.site import Examples
from fed_diffmic.errors import DataError
from fed_diffmic.inference.finished import final_predictor
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.training.familiar import familiar, image_features
from fed_diffmic.training.features import CHUNK, chunks
from simulations.sites import build_sites

Change = Callable[[torch.Tensor], torch.Tensor]


def features(predictor: Predictor, images: torch.Tensor) -> np.ndarray:
    """Features of ``(n, 3, H, H)`` uint8."""
    parts = [image_features(predictor.module, images[i], predictor.device) for i in chunks(len(images), CHUNK)]
    return np.concatenate(parts)


def drawn(modality: str, count: int, side: int) -> torch.Tensor:
    """Images of another modality, ``(count, 3, side, side)`` uint8."""
    found = []
    for number in range(count):
        subject, view = (np.random.default_rng([number, part]) for part in (0, 1))
        if modality == "chest":
            found.append(chest.draw(frozenset(), site_style(0), subject, view, side))
        else:
            found.append(dermoscopy.draw(number % len(dermoscopy.CLASSES), site_style(0), subject, view, side))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def shares(predictor: Predictor, val: Examples, test: Examples, modality: str) -> dict[str, float]:
    """Share warned of, by kind of image."""
    spec, every = predictor.spec, np.arange(len(test))
    usual = familiar(features(predictor, val.images(np.arange(len(val)))), val.labels, val.groups, spec.task)
    images = test.images(every)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8))
    kinds = {
        "its own": images,
        "inverted": 255 - images,
        "turned": torch.rot90(images, 1, (2, 3)),
        "empty": torch.zeros_like(images[:1]),
        "noise": noise,
        "another modality": drawn("dermoscopy" if modality == "chest" else "chest", 50, images.shape[-1]),
    }
    return {kind: float(usual.unfamiliar(features(predictor, some)).mean()) for kind, some in kinds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--most", type=int, default=300, help="images of a site")
    given = parser.parse_args()
    config = compose(given.run / "config.yaml", [])
    with tempfile.TemporaryDirectory() as scratch:
        sites = build_sites(config, Path(scratch)).sites
    predictor = final_predictor(given.run)
    for name, data in sites.items():
        val, test = (part.subset(np.arange(min(len(part), given.most))) for part in (data.val, data.test))
        try:
            found = shares(predictor, val, test, predictor.spec.modality)
        except DataError as error:
            print(f"{name}: {error.cause}")
            continue
        said = ", ".join(f"{kind} {share:.0%}" for kind, share in found.items())
        print(f"{name} ({len(val)} validation, {len(test)} test images): {said}")


if __name__ == "__main__":
    main()
