"""Normalisation layers: what starts from scratch, what is frozen, what replaces batch norm."""

from __future__ import annotations

from typing import cast

from timm.layers.norm_act import GroupNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

LARGEST_GROUP_COUNT = 8
"""Eight groups divide every width of EfficientNet-Lite0; sixteen fail at 24 and 40 channels."""


def group_count(channels: int) -> int:
    """The largest divisor of ``channels`` that is at most eight."""
    return next(n for n in range(LARGEST_GROUP_COUNT, 0, -1) if channels % n == 0)


def row_norm(kind: str, channels: int) -> nn.Module:
    """Normalisation of rows ``(N, channels)``: batch norm over the rows, or group norm inside each row.

    Group norm sees the channels of one row alone, so a grid's cell, given as a row, never depends
    on the other cells, on the other images or on how many there are.
    """
    if kind == "batch":
        return nn.BatchNorm1d(channels)
    if kind == "group":
        return nn.GroupNorm(group_count(channels), channels)
    raise ValueError(f"norm must be batch or group, not {kind!r}")


def batch_norms(module: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Every batch norm inside ``module`` with its name, subclasses such as timm's included."""
    return [(name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm)]


def normalisation_layers(module: nn.Module) -> frozenset[str]:
    """Names of every normalisation layer inside ``module``: batch, group, layer and instance norm, subclasses too."""
    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return frozenset(name for name, m in module.named_modules() if isinstance(m, kinds))


def live_batch_norms(module: nn.Module) -> list[str]:
    """Names of the batch norms that would mix the examples of a batch as ``module`` stands now.

    Looks for subclasses too: tools that compare exact types overlook timm's ``BatchNormAct2d``.
    """
    return [name for name, m in batch_norms(module) if m.training or m.running_mean is None]


def replace_batch_norms(module: nn.Module) -> int:
    """Replace every batch norm inside ``module`` by group norm in place; returns how many.

    Names, affine weights, ``requires_grad`` and, for timm's fused layers, the activation are kept,
    so that a weights file made for batch norm still fits (its running statistics are not used).
    """
    found = batch_norms(module)
    for name, old in found:
        new = _group_norm_like(old)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, new)
    return len(found)


def _group_norm_like(old: _BatchNorm) -> nn.GroupNorm:
    channels = old.num_features
    device = next((p.device for p in old.parameters()), None)
    new: nn.GroupNorm
    if hasattr(old, "act"):
        new = GroupNormAct(
            channels, group_count(channels), eps=old.eps, affine=old.affine, apply_act=False, device=device
        )
        new.act = cast(nn.Module, old.act)
        new.drop = cast(nn.Module, getattr(old, "drop", nn.Identity()))
    else:
        new = nn.GroupNorm(group_count(channels), channels, eps=old.eps, affine=old.affine, device=device)
    if old.affine:
        new.weight, new.bias = old.weight, old.bias
    return new.train(old.training)
