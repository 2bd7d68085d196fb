"""Linear layers whose weights are laid out once for many products of few rows.

A product of few rows with a large weight spends half of its time on bringing the weight into the order in which the
processor multiplies, each time anew: 24 rows with 6144 x 6144 ran at 15 GFLOP/s, laid out before at 29
(docs/performance.md). The same sums in another order: results differ from the layer's own by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
ROWS = 24  # four images of six cells; of 6 to 96 rows none is slower for it
LEAST_USES = 4  # laying out takes as long as what one or two products gain by it
LEAST_WEIGHTS = 1 << 20  # a smaller weight stays in the processor's cache


def packed(layer: nn.Linear, uses: int) -> Product:
    """What a layer computes, from a copy of its weights laid out for few rows; itself where that is no gain.

    The copy is of the weights as they are now and lives as long as what is returned: ask anew where they may change.
    What the copy cannot compute (no rows, another type, a gradient) the layer itself does, and refuses what it refuses.
    A row's result does not depend on how many there are: the layout is always that for :data:`ROWS`.

    Args:
        layer: whose product it is.
        uses: how many products there will be.
    """
    if uses < LEAST_USES or layer.weight.numel() < LEAST_WEIGHTS or not (_is_plain(layer) and _can(layer.weight)):
        return layer
    weight, bias, columns = torch.ops.mkldnn._reorder_linear_weight(layer.weight, ROWS), layer.bias, layer.in_features

    def product(x: Tensor) -> Tensor:
        if not x.numel() or x.shape[-1] != columns or not _can(x):
            return layer(x)
        flat = x.reshape(-1, columns)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
        return found.reshape(*x.shape[:-1], -1)

    return product


def _is_plain(layer: nn.Linear) -> bool:
    """Whether calling the layer is its product and nothing else."""
    return type(layer).forward is nn.Linear.forward and not (layer._forward_hooks or layer._forward_pre_hooks)


def _can(value: Tensor) -> bool:
    """Whether oneDNN computes with it in float32 here, and nothing is differentiated, cast or traced."""
    return bool(
        type(value) in (Tensor, nn.Parameter)
        and value.device.type == "cpu"
        and value.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        # Not a part of torch's interface: where it is not there, the layer is as right as before.
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
