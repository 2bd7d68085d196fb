"""Where a model's guidance network responds in one image: the saliency map of a class, and the regions it cut out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fed_diffmic.data.transforms import normalise
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.models.diffmic import DiffMIC
from fed_diffmic.models.guidance import GuidanceNetwork


@dataclass(frozen=True, eq=False)
class Look:
    """What the guidance network looked at in an image; says where it responds, not why, and not that it is right to.

    Attributes:
        saliency: ``(G, G)`` float32 of one class, from its lowest value in this image (0) to its highest (1).
        boxes: ``(K, 3)`` float32: top, left and side of each region as shares of the image's side, in the order in
            which they were found. They are sought in the maps of all classes together (``model.region_map``).
        attention: ``(K,)`` float32, weight of each region; they sum to 1.
    """

    saliency: np.ndarray
    boxes: np.ndarray
    attention: np.ndarray


def has_look(predictor: Predictor) -> bool:
    """Whether the model has a guidance network; a plain classifier has none."""
    return isinstance(predictor.module.network, (DiffMIC, GuidanceNetwork))


@torch.no_grad()
def look(predictor: Predictor, pixels: np.ndarray, index: int) -> Look:
    """Run the guidance network once more, alone.

    Args:
        predictor: with a guidance network (:func:`has_look`).
        pixels: ``(3, H, H)`` uint8, ``H`` the model's ``image_side``.
        index: of the class whose map is wanted.

    Raises:
        ValueError: the model has no guidance network.
    """
    module = predictor.module.to(predictor.device).eval()
    network = module.network.guidance if isinstance(module.network, DiffMIC) else module.network
    if not isinstance(network, GuidanceNetwork):
        raise ValueError("a plain classifier has no guidance network")
    spec = predictor.spec
    torch.set_num_threads(spec.threads)
    output = network(normalise(torch.from_numpy(pixels)[None].to(predictor.device), spec.mean, spec.std))
    heat = output.saliency[0, index].float().cpu().numpy()
    span = float(heat.max() - heat.min())
    side = float(pixels.shape[-1])
    corners = output.pixels[0].cpu().numpy() / side
    size = np.full((len(corners), 1), spec.model.crop / side)
    return Look(
        saliency=(heat - heat.min()) / np.float32(span or 1.0),
        boxes=np.concatenate([corners, size], axis=1).astype(np.float32),
        attention=output.attention[0].float().cpu().numpy(),
    )
