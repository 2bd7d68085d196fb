"""Weights that a coordinator makes so that single images can be read out of the update of a large batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fed_diffmic.models.guidance import GuidanceNetwork
from fed_diffmic.models.plain import PlainClassifier
from fed_diffmic.privacy.inversion.subject import Subject

PIXELS = 8  # a patch crosses an imprint as so many grey cells a side
_LOUD = 100.0
_SHARP = 1e3


@torch.no_grad()
def mask_all_but_one_class(subject: Subject) -> bool:
    """Class fishing (Wen et al. 2022): only images of the last class have a gradient in the encoder.

    The last class's logit is far below the others whatever the image is, and no other logit depends on the features. A
    class of which a batch holds one image is so alone in the update, however large the batch.

    Returns:
        Whether the network has a head that this is known for; its weights are changed then.
    """
    network = subject.module.network
    images = subject.normalised(subject.public[:16])
    last = len(subject.spec.classes) - 1
    if isinstance(network, GuidanceNetwork):
        network.eval()
        mean = network.global_encoder(images).mean(dim=(0, 2, 3))
        heads = [(network.saliency.weight, mean), (network.local_head.classifier.weight, None)]
    elif isinstance(network, PlainClassifier):
        network.eval()
        heads = [(network.classifier.weight, network.encoder(images).mean(dim=0))]
        network.classifier.bias.zero_()
    else:
        return False
    for weight, mean_feature in heads:
        weight.zero_()
        if mean_feature is not None:
            row = -_LOUD * mean_feature / mean_feature.square().sum().clamp_min(1e-12)
            weight[last].copy_(row.reshape(weight[last].shape))
    return True


@torch.no_grad()
def imprint(subject: Subject, prefix: str) -> Tensor | None:
    """An imprint (Fowl et al. 2022) in a vision transformer's first block: each row of its first layer sees the patches
    that are brighter than the row's threshold, so that neighbouring rows differ by the patches in between.

    Patches become :data:`PIXELS` squared grey cells beside one loud constant, which makes layer normalisation all but
    linear; attention and the later blocks are silent.

    Args:
        prefix: of the transformer's parameters.

    Returns:
        The thresholds, which the attacker knows; none where the network is too narrow. Its weights are changed.
    """
    net: Any = subject.module.network.get_submodule(prefix.removesuffix("."))
    blocks = list(net.blocks)
    proj, first = net.patch_embed.proj, blocks[0].mlp
    width, cells, side = proj.out_channels, PIXELS * PIXELS, proj.kernel_size[0]
    if width < cells + 4 or side % PIXELS:
        return None
    step = side // PIXELS
    proj.weight.zero_()
    for cell in range(cells):
        row, column = divmod(cell, PIXELS)
        proj.weight[cell, :, row * step : (row + 1) * step, column * step : (column + 1) * step] = 1 / (3 * step * step)
    proj.weight[cells + 2] = 1 / (3 * side * side)  # brightness: what thresholds are for
    proj.bias.zero_()
    proj.bias[cells] = _LOUD  # and channel cells + 1 stays silent
    net.pos_embed.zero_()
    for block in blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
    norm = blocks[0].norm2
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    tokens = norm(net.patch_embed(subject.normalised(subject.public))).flatten(0, -2)
    bright = tokens[:, cells + 2]
    bins = first.fc1.out_features
    low, high = float(bright.min()), float(bright.max())
    # Half by quantiles of public images, half evenly: equal quantiles must not make equal rows.
    shares = torch.linspace(0.0, 1.0, bins)
    thresholds = (torch.quantile(bright, shares) + low + (high - low) * shares) / 2
    sharp = _SHARP * bins / (high - low)
    first.fc1.weight.zero_()  # where pixels enter they are 0, so that the update is not rounded
    first.fc1.weight[:, cells + 2] = sharp
    first.fc1.bias.copy_(-sharp * thresholds)
    # Seen by what comes next as one more number of usual size, so that no logit is saturated.
    first.fc2.weight[width - 1].fill_(1 / (_SHARP * bins * bins))
    return thresholds


def imprinted_patches(gradient: dict[str, Tensor], prefix: str) -> Tensor:
    """Patches that lie alone between two thresholds, as ``(N, PIXELS, PIXELS)`` normalised grey cells."""
    weight = gradient[f"{prefix}blocks.0.mlp.fc1.weight"].double()
    rows, cells = weight[:-1] - weight[1:], PIXELS * PIXELS
    # Layer normalisation undone: the loud channel is known, and so is the one that nothing entered.
    loud = rows[:, cells] - rows[:, cells + 1]
    kept = loud.abs() > 1e-4 * loud.abs().max().clamp_min(1e-30)
    pixels = (rows[kept, :cells] - rows[kept, cells + 1 : cells + 2]) * (_LOUD / loud[kept]).unsqueeze(1)
    return pixels.reshape(-1, PIXELS, PIXELS).float()
