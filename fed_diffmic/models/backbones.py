"""Any timm backbone as an encoder: which features it gives, what of it is trained, how it is built.

Convolutional (pyramid) backbones give the features at a chosen stride; what lies behind them is cut
off. Patch backbones (vision transformers) give their patch grid without a final norm. A plain ViT
whose only extra token is the class token is built without it, as EfficientSAM's image encoder is
(layer-norm eps 1e-6 is timm's own).
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fed_diffmic.errors import ConfigError
from fed_diffmic.models.depthwise import speed_up_depthwise
from fed_diffmic.models.normalisation import batch_norms, replace_batch_norms
from fed_diffmic.models.without_compiler import shapes_only

NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})
_NUMBERED_STAGE = re.compile(r"(layer|stage|s)\d+")


@dataclass(frozen=True)
class BackboneInfo:
    """What timm says of a backbone before any weight exists.

    Attributes:
        reductions: stride of each intermediate feature map, from the first to the last.
        widths: channels of each.
        patch: the map is a patch grid of one stride (vision transformers): ``feature_stride`` does
            not apply to it.
        arguments: what ``timm.create_model`` needs beside the name for this input side.
    """

    reductions: tuple[int, ...]
    widths: tuple[int, ...]
    patch: bool
    arguments: Mapping[str, Any]

    def has(self, stride: int) -> bool:
        """Whether there is a feature map at ``stride`` (a patch grid serves any)."""
        return self.patch or stride in self.reductions

    def index(self, stride: int | None) -> int:
        """Position of the deepest feature map at ``stride`` (None, or a patch grid: the last).

        Raises:
            ValueError: no feature map has that stride.
        """
        if stride is None or self.patch:
            return len(self.reductions) - 1
        if not self.has(stride):
            raise ValueError(f"features at strides {self.reductions}, not {stride}")
        return max(i for i, reduction in enumerate(self.reductions) if reduction == stride)


def check_backbone_name(name: str, key: str) -> None:
    """Refuse a name that timm does not know, without asking any model hub.

    Raises:
        ConfigError: naming ``key`` and the nearest names.
    """
    architecture, _, tag = name.partition(".")
    if ":" in name or "/" in name or not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            key, name, f"the name of a timm model; near: {', '.join(near)}" if near else "the name of a timm model"
        )
    if tag:
        try:
            get_pretrained_cfg(name)
        except RuntimeError:
            tags = timm.list_pretrained(f"{architecture}.*")
            raise ConfigError(
                key, name, f"{architecture} without a tag, or one of {', '.join(tags) or 'no tag'}"
            ) from None


@functools.lru_cache(maxsize=256)
def _info(name: str, side: int, plain: bool, overrides: tuple[tuple[str, Any], ...]) -> BackboneInfo:
    arguments = dict(overrides)
    if getattr(get_pretrained_cfg(name), "fixed_input_size", False):
        arguments["img_size"] = side
    with shapes_only():
        net: Any = timm.create_model(name, num_classes=0, **arguments)
        if not plain and type(net) is VisionTransformer and net.has_class_token and net.num_prefix_tokens == 1:
            arguments.update(class_token=False, no_embed_class=True, global_pool="avg")
    features = list(net.feature_info)
    reductions = tuple(int(f["reduction"]) for f in features)
    return BackboneInfo(
        reductions=reductions,
        widths=tuple(int(f["num_chs"]) for f in features),
        patch=len(reductions) > 1 and len(set(reductions)) == 1,
        arguments=MappingProxyType(arguments),
    )


def backbone_info(
    name: str, side: int, *, whole: bool = False, overrides: Mapping[str, Any] = NO_OVERRIDES
) -> BackboneInfo:
    """What timm says of a backbone at an input side (cached; allocates no weights).

    Args:
        name: timm name.
        side: input side in pixels.
        whole: keep the class token of a plain ViT (a classifier of timm's own making).
        overrides: further arguments of ``timm.create_model``.
    """
    return _info(name, side, whole, tuple(sorted(overrides.items())))


class Encoder(nn.Module):
    """A timm backbone that turns images into features.

    Args:
        name: timm name.
        side: side of the images it will see, in pixels.
        stride: pixels a feature cell covers (None: the last stage). Ignored by patch backbones.
        whole: keep the backbone whole and return its pooled features before the classifier (``(N, W)``)
            instead of a feature map.
        norm: ``train``, ``frozen`` (batch norm stays at its running statistics, affine not trained)
            or ``group`` (batch norm replaced by group norm).
        frozen_blocks: leading blocks (and the stem) of a convolutional backbone that are not
            trained and stay in evaluation mode.
        overrides: further arguments of ``timm.create_model``.

    Attributes:
        width: channels ``W`` of the features.

    The weights are in channels-last memory order (about 1.5 times faster on a processor); torch's
    convolutions then follow it whatever the input's order. See :func:`channels_last_is_safe`.

    Raises:
        ConfigError: ``model.frozen_blocks`` does not suit the backbone.
        ValueError: the backbone has no feature map at ``stride``.
    """

    net: Any

    def __init__(
        self,
        name: str,
        *,
        side: int,
        stride: int | None = None,
        whole: bool = False,
        norm: str = "train",
        frozen_blocks: int = 0,
        overrides: Mapping[str, Any] = NO_OVERRIDES,
    ) -> None:
        super().__init__()
        info = backbone_info(name, side, whole=whole, overrides=overrides)
        self.name = name
        self.side = side
        self.patch = info.patch
        self.arguments = dict(info.arguments)
        self.index = None if whole else info.index(stride)
        self.net = timm.create_model(name, num_classes=0, **info.arguments)
        if self.index is None:
            self.width = int(
                self.net.head_hidden_size if hasattr(self.net, "head_hidden_size") else self.net.num_features
            )
        else:
            self.width = info.widths[self.index]
            self.net.prune_intermediate_layers([self.index], prune_norm=True, prune_head=True)
        if norm == "group":
            replace_batch_norms(self.net)
        self._always_eval: tuple[str, ...] = ()
        if norm == "frozen":
            self._keep_frozen([name for name, _ in batch_norms(self.net)])
        if frozen_blocks and not info.patch:
            self._keep_frozen(leading_blocks(self.net, frozen_blocks, name))
        self.channels_last = channels_last_is_safe(self.net)
        if self.channels_last:
            self.net.to(memory_format=torch.channels_last)
        speed_up_depthwise(self.net)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, 3, side, side)`` to a map ``(N, W, side/stride, side/stride)``, or ``(N, W)`` if whole."""
        if not self.channels_last:
            images = images.contiguous()
        if self.index is None:
            features: Tensor = self.net(images)
            return features
        maps: list[Tensor] = self.net.forward_intermediates(
            images, indices=[self.index], norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return maps[0]

    def train(self, mode: bool = True) -> Encoder:
        """As in torch, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for name in self._always_eval:
            self.net.get_submodule(name).eval()
        return self

    def freeze(self) -> Encoder:
        """Freeze the whole encoder: no gradients, evaluation mode for good."""
        self._keep_frozen([""])
        return self

    def _keep_frozen(self, names: list[str]) -> None:
        # The whole encoder ("") has all its parts in it; modules are looked up by name in every step.
        self._always_eval = ("",) if "" in names else (*self._always_eval, *names)
        for name in names:
            self.net.get_submodule(name).requires_grad_(False)
        self.train(self.training)


def channels_last_is_safe(net: nn.Module) -> bool:
    """False where oneDNN's backward pass would write past its buffer in channels-last order.

    A strided 1x1 convolution of fewer than 16 channels corrupts the heap on x86 (oneDNN issue 6035;
    seen with timm's fastvit_t8 and torch 2.15). No other convolution is known to.
    """
    return not any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels // m.groups < 16
        for m in net.modules()
    )


def block_names(net: nn.Module) -> tuple[list[str], list[str]]:
    """Names of a convolutional backbone's stem and of its blocks in order (both empty if unknown)."""
    children = [name for name, _ in net.named_children()]
    for container in ("blocks", "stages", "layers"):
        inner = getattr(net, container, None)
        if isinstance(inner, (nn.Sequential, nn.ModuleList)):
            return children[: children.index(container)], [f"{container}.{name}" for name, _ in inner.named_children()]
    numbered = [
        n for n in children if _NUMBERED_STAGE.fullmatch(n) and any(True for _ in net.get_submodule(n).parameters())
    ]
    return (children[: children.index(numbered[0])], numbered) if numbered else ([], [])


def leading_blocks(net: nn.Module, count: int, backbone: str) -> list[str]:
    """Names of the stem and the first ``count`` blocks of a convolutional backbone.

    Raises:
        ConfigError: it has fewer blocks, or none that can be told apart.
    """
    stem, blocks = block_names(net)
    if count > len(blocks):
        allowed = f"0 to {len(blocks)} for {backbone} as it is used here" if blocks else f"0 for {backbone}"
        raise ConfigError("model.frozen_blocks", count, allowed)
    return [*stem, *blocks[:count]]
