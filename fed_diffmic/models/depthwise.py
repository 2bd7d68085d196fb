"""Depthwise convolutions over very small maps, as matrix products.

Crops of 32 pixels end as maps of one or four cells. There oneDNN's depthwise convolution takes up to fifty times as
long as the arithmetic needs, mostly in its backward pass, and more than everything else of a step together
(``benchmarks/depthwise.py`` prints the ratio). A depthwise convolution of ``I`` cells to ``O`` cells is one ``(I, O)``
matrix for each channel, whose entries are the kernel's: the same sums, in another order.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

MOST_PRODUCTS = 256  # I x O up to which the matrix product was measured to be faster
MOST_CELLS = 4  # so many output cells are always small; more only under kernels that oneDNN is slow at
SLOW_KERNEL = 5


def speed_up_depthwise(net: nn.Module) -> int:
    """Let the depthwise convolutions inside ``net`` use the matrix product where it is faster; returns how many.

    Parameters, their names and what is computed stay; sums may differ in their last bits.
    """
    found = [m for m in net.modules() if isinstance(m, nn.Conv2d) and _suits(m)]
    for conv in found:
        conv.forward = types.MethodType(_forward, conv)  # type: ignore[method-assign]
    return len(found)


def _suits(module: nn.Conv2d) -> bool:
    return (
        type(module) in (nn.Conv2d, Conv2dSame)
        and module.groups == module.in_channels == module.out_channels > 1
        and set(module.dilation) == {1}
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and max(module.kernel_size) > 1
    )


def _forward(self: nn.Conv2d, x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        before, after = _padding(self, x.shape[-2:])
        cells = tuple(
            (size + first + last - kernel) // stride + 1
            for size, first, last, kernel, stride in zip(
                x.shape[-2:], before, after, self.kernel_size, self.stride, strict=True
            )
        )
        outputs, inputs = cells[0] * cells[1], x.shape[-2] * x.shape[-1]
        if outputs * inputs <= MOST_PRODUCTS and (outputs <= MOST_CELLS or max(self.kernel_size) >= SLOW_KERNEL):
            return small_depthwise(x, self.weight, self.bias, self.stride, before, (cells[0], cells[1]))
    return type(self).forward(self, x)


def _padding(conv: nn.Conv2d, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros in front and behind, for rows and columns; ``same`` padding depends on the input's size."""
    if isinstance(conv, Conv2dSame):
        whole = [
            max((-(-n // stride) - 1) * stride + kernel - n, 0)
            for n, stride, kernel in zip(size, conv.stride, conv.kernel_size, strict=True)
        ]
        return tuple(n // 2 for n in whole), tuple(n - n // 2 for n in whole)
    return tuple(map(int, conv.padding)), tuple(map(int, conv.padding))


def small_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    before: tuple[int, ...],
    cells: tuple[int, int],
) -> Tensor:
    """Depthwise convolution as one matrix for each channel.

    Args:
        x: ``(N, W, h, w)``.
        weight: ``(W, 1, k, l)``.
        bias: ``(W,)`` or none.
        stride: for rows and columns.
        before: zeros in front of rows and columns.
        cells: rows and columns of the output.

    Returns:
        ``(N, W, *cells)``.
    """
    if has_torch_function((x, weight)):  # as torch's own convolutions, it can be seen by who follows the weights
        y: Tensor = handle_torch_function(small_depthwise, (x, weight), x, weight, bias, stride, before, cells)
        return y
    shape = tuple(x.shape[-2:]), tuple(weight.shape[-2:])
    index = torch.from_numpy(_entries(*shape, tuple(stride), tuple(before), cells))
    kernel = F.pad(weight.flatten(1), (0, 1))  # the last entry is what lies outside the kernel: zero
    matrices = kernel.index_select(1, index.flatten()).unflatten(1, index.shape)  # (W, I, O)
    if index.numel() == 1:
        y = x.flatten(2) * matrices[:, 0]
    else:
        # In channels-last order torch would copy and multiply one channel at a time, and of the gradient again: one
        # copy of each is a quarter of the price.
        products = torch.bmm(x.flatten(2).transpose(0, 1).contiguous(), matrices)
        y = (_InOrder.apply(products) if products.requires_grad else products).transpose(0, 1)
    if bias is not None:
        y = y + bias[:, None]
    return y.unflatten(2, cells)


class _InOrder(torch.autograd.Function):
    """The same numbers, whose gradient comes as one block."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].contiguous()


@functools.lru_cache(maxsize=64)
def _entries(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    before: tuple[int, ...],
    cells: tuple[int, int],
) -> np.ndarray:
    """Entry of the flat kernel that joins input cell ``i`` to output ``o``, ``(I, O)``; none: one past the last.

    Kept as an array: a tensor that was made under ``inference_mode`` could not be trained through later.
    """
    inputs, outputs = np.arange(size[0] * size[1]), np.arange(cells[0] * cells[1])
    row = (inputs // size[1])[:, None] + before[0] - (outputs // cells[1])[None] * stride[0]
    column = (inputs % size[1])[:, None] + before[1] - (outputs % cells[1])[None] * stride[1]
    inside = (row >= 0) & (row < kernel[0]) & (column >= 0) & (column < kernel[1])
    return np.where(inside, row * kernel[1] + column, kernel[0] * kernel[1])
