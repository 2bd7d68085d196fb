"""Real stages on random images, for the tests of privacy."""

from dataclasses import replace

import numpy as np
import torch

from fed_diffmic.config.compose import compose
from fed_diffmic.data.site import Examples
from fed_diffmic.training.stages import build_module
from tests.toy import CLASSES, ToyCache, toy_spec

SIDES = {"tiny": 40, "compact": 56}
"""Pictures at which every layer still meets more than one position, and one of odd height: 5 to 3, 7 to 4."""


def private_spec(preset, *, encoders="train", task="multiclass", draws=2, **stage):
    """A spec of ``preset``'s network without live batch norm, at a small side."""
    model = compose(None, [f"model={preset}"]).model
    norm = "frozen" if preset == "compact" else "group"
    model = replace(model, denoiser="noise", norm="group", encoder_norm=norm, frozen_blocks=0)
    model = replace(model, image_side=SIDES.get(preset, model.image_side))
    spec = toy_spec(loss="balanced", draws=draws, encoders=encoders, **stage)
    return replace(spec, model=model, task=task)


def stage_module(spec, stage, dtype=torch.float32):
    """The stage's module from seeded weights, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module(spec, stage)
        # Weights that start at zero (the last norm of a residual block) would leave most gradients at zero.
        for value in module.network.parameters():
            if not value.any() and spec.model.name != "compact":
                torch.nn.init.normal_(value, std=0.3)
    return module.to(dtype).train()


def random_examples(side, images, task="multiclass", groups=None, seed=0):
    """``images`` noise pictures; ``groups``: each image's patient."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 3, side, side)).astype(np.uint8))
    labels = rng.integers(0, len(CLASSES), images)
    if task == "multilabel":
        labels = rng.integers(0, 2, (images, len(CLASSES))).astype(np.float32)
    names = np.array([str(i) for i in range(images)] if groups is None else groups)
    return Examples(np.arange(images), labels, names, np.arange(images).astype(np.uint64), ToyCache(pixels))
