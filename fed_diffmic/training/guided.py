"""What stages behind a frozen guidance network share, and what it says of training images computed ahead.

A guidance network is surer of images that it was trained on than of others. A head that is trained on what it says of
those learns to trust it more than it may. **Cross-fitting** gives each training image the word of a network that saw no
image of its group (patient, lesion): :class:`GuidanceTable` holds that word, image by image, and a stage in training
mode takes it in place of its own network's; in evaluation mode it never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.models.diffmic import DiffMIC, Features
from fed_diffmic.models.guidance import GuidanceNetwork
from fed_diffmic.seeding import derive_seed
from fed_diffmic.training.features import CHUNK, chunks, normalised_images
from fed_diffmic.training.stage import StageModule


@dataclass(frozen=True, eq=False)
class GuidanceTable:
    """What guidance networks say of ``N`` images as they are (not augmented).

    Attributes:
        keys: ``(N,)`` uint64, each image's number, no two alike.
        y_global, y_local: logits, ``(N, C)``.
        crops: ``(N, K, 3, c, c)`` normalised.
    """

    keys: np.ndarray
    y_global: torch.Tensor
    y_local: torch.Tensor
    crops: torch.Tensor

    def at(self, keys: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Global and local logits and crops of the images with these numbers, in that order.

        Raises:
            ValueError: an image that the table does not hold.
        """
        order = np.argsort(self.keys)
        found = order[np.searchsorted(self.keys, keys, sorter=order).clip(max=len(order) - 1)]
        if not np.array_equal(self.keys[found], keys):
            raise ValueError("an image is not among those that the guidance was computed of")
        index = torch.from_numpy(found)
        return self.y_global[index], self.y_local[index], self.crops[index]


@torch.no_grad()
def guidance_table(module: StageModule, examples: Examples, device: torch.device | str = "cpu") -> GuidanceTable:
    """What the guidance network of a stage ``guidance`` says of examples; evaluation mode."""
    network = module.network
    assert isinstance(network, GuidanceNetwork)
    module.to(device).eval()
    said = [network(normalised_images(module, examples, index, device)) for index in chunks(len(examples), CHUNK)]
    parts = ([getattr(one, name) for one in said] for name in ("y_global", "y_local", "crops"))
    return GuidanceTable(examples.keys, *(torch.cat(part) for part in parts))


def joined(tables: Sequence[GuidanceTable]) -> GuidanceTable:
    """Several tables of different images as one.

    Raises:
        ValueError: two hold the same image: one of the networks saw what it speaks of.
    """
    keys = np.concatenate([table.keys for table in tables])
    if len(np.unique(keys)) < len(keys):
        raise ValueError("two guidance tables hold the same image")
    columns = ([getattr(table, name) for table in tables] for name in ("y_global", "y_local", "crops"))
    return GuidanceTable(keys, *(torch.cat(column) for column in columns))


def fold_of(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold of each image ``(N,)`` in ``0..count - 1`` by its group's name: all images of a group are in one."""
    return np.array([derive_seed(seed, "crossfit", str(group)) % count for group in groups], dtype=np.int64)


class GuidedStage(StageModule):
    """A stage whose network holds a frozen guidance network in front of what is trained."""

    network: DiffMIC

    #: what is said of training images in place of the own guidance network; none: its own word
    table: GuidanceTable | None = None

    def __init__(self, spec: RunSpec, stage: str, network: DiffMIC) -> None:
        super().__init__(spec, stage, network)
        self.features_once = spec.stages.diffusion.encoders == "frozen"
        self.blended = spec.stages.diffusion.blend
        if self.features_once:
            network.freeze_encoders()

    def inputs(self, images: torch.Tensor) -> Features:
        """Everything in front of the trainable projections (section 2), with or without gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.features_once):
            return self.network.features(images)

    def inputs_of(self, images: torch.Tensor, keys: np.ndarray) -> Features:
        """As :meth:`inputs`; in training mode with the table's word, where there is one.

        Raises:
            ValueError: a training image that the table does not hold.
        """
        if self.table is None or not self.training:
            return self.inputs(images)
        y_global, y_local, crops = (part.to(images.device) for part in self.table.at(keys))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.features_once):
            return Features(y_global, y_local, *self.network.prior.encode(images, crops))
