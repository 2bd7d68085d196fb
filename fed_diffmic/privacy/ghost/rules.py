"""Functions of torch whose use of a weight is known: what runs in their place while a loss is taped.

Each rule takes the tape, the function and its arguments. Rows of a batch are images in order, each with as many rows
(its crops, its cells); what is laid out otherwise is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_diffmic.models.depthwise import small_depthwise
from fed_diffmic.privacy.ghost.layout import Layout
from fed_diffmic.privacy.ghost.tape import Rule, Tape
from fed_diffmic.privacy.ghost.uses import Convolution, Linear, Lookup, Rows


def _by_unit(values: Tensor, layout: Layout) -> Rows:
    """Rows ``(N * r, *shape)``, those of a unit summed."""
    return Rows(layout.sum(values.unflatten(0, (layout.images, -1)).sum(dim=1)))


def _rows(tape: Tape, x: Any) -> int | None:
    """Rows of an image in the batch ``x``; none: it is no batch."""
    return None if not isinstance(x, Tensor) or tape.source(x) is not None else tape.layout.rows_each(x)


def _linear(tape: Tape, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if _rows(tape, input) is None or input.dim() < 2:
        return NotImplemented
    layout, flat = tape.layout, input.reshape(-1, input.shape[-1])
    images, a = layout.images, flat.detach()
    output = tape.tap(
        F.linear(flat, tape.plain(weight), tape.plain(bias)),
        [input],
        [
            (weight, lambda g: Linear(a.unflatten(0, (images, -1)), g.unflatten(0, (images, -1)))),
            (bias, lambda g: _by_unit(g, layout)),
        ],
    )
    return output.view(*input.shape[:-1], output.shape[1])


def _conv2d(
    tape: Tape, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    each, layout = _rows(tape, input), tape.layout
    if each is None or input.dim() != 4 or isinstance(padding, str):
        return NotImplemented
    x, shape, sides = input.detach(), tuple(weight.shape), (_pair(stride), _pair(padding), _pair(dilation))
    return tape.tap(
        F.conv2d(input, tape.plain(weight), tape.plain(bias), *sides, groups),
        [input],
        [
            (weight, lambda g: Convolution(x, g, shape, each, *sides, groups)),
            (bias, lambda g: _by_unit(g.sum(dim=(2, 3)), layout)),
        ],
    )


def _small_depthwise(
    tape: Tape, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...],
    before: tuple[int, ...], cells: tuple[int, int],
) -> Any:  # fmt: skip
    each, layout = _rows(tape, x), tape.layout
    if each is None:
        return NotImplemented
    seen, shape, step = x.detach(), tuple(weight.shape), _pair(stride)
    sizes = zip(cells, step, shape[2:], x.shape[2:], before, strict=True)
    after = [(cell - 1) * by + kernel - size - first for cell, by, kernel, size, first in sizes]

    def use(g: Tensor) -> Convolution:
        whole = F.pad(seen, (before[1], after[1], before[0], after[0]))
        return Convolution(whole, g, shape, each, step, (0, 0), (1, 1), shape[0])

    output = small_depthwise(x, tape.plain(weight), tape.plain(bias), stride, before, cells)
    return tape.tap(output, [x], [(weight, use), (bias, lambda g: _by_unit(g.sum(dim=(2, 3)), layout))])


def _group_norm(
    tape: Tape, func: Any, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    if _rows(tape, input) is None:
        return NotImplemented
    output = F.group_norm(input, num_groups, tape.plain(weight), tape.plain(bias), eps)
    over = tuple(range(2, input.dim()))
    return _scaled(tape, output, input, (weight, bias), over, lambda x: F.group_norm(x, num_groups, eps=eps))


def _layer_norm(
    tape: Tape, func: Any, input: Tensor, normalized_shape: Any, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if _rows(tape, input) is None or len(normalized_shape) >= input.dim():
        return NotImplemented
    output = F.layer_norm(input, normalized_shape, tape.plain(weight), tape.plain(bias), eps)
    over = tuple(range(1, input.dim() - len(normalized_shape)))
    return _scaled(tape, output, input, (weight, bias), over, lambda x: F.layer_norm(x, normalized_shape, eps=eps))


def _scaled(
    tape: Tape,
    output: Tensor,
    x: Tensor,
    weights: tuple[Tensor | None, Tensor | None],
    over: tuple[int, ...],
    normalised: Callable[[Tensor], Tensor],
) -> Tensor:
    """A norm's output; its weight and bias are the same over the dimensions ``over`` of a row."""
    seen, layout = x.detach(), tape.layout

    def use(g: Tensor) -> Rows:
        return _by_unit(g.sum(dim=over) if over else g, layout)

    return tape.tap(output, [x], [(weights[0], lambda g: use(g * normalised(seen))), (weights[1], use)])


def _embedding(
    tape: Tape, func: Any, input: Tensor, weight: Tensor, padding_idx: int | None = None,
    max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Any:  # fmt: skip
    if padding_idx is not None or max_norm is not None or scale_grad_by_freq or sparse or _rows(tape, input) is None:
        return NotImplemented
    images, rows, width = tape.layout.images, weight.shape[0], weight.shape[1]
    output = F.embedding(input, tape.plain(weight))
    index = input.reshape(images, -1)
    return tape.tap(output, [input], [(weight, lambda g: Lookup(index, g.reshape(images, -1, width), rows))])


def _elementwise(tape: Tape, func: Any, first: Any, second: Any, **more: Any) -> Any:
    """``x + p``, ``x * p`` and the like: each row of ``x`` gets a ``p`` of its own, whose gradient is the row's."""
    p, x = (first, second) if tape.source(first) is not None else (second, first)
    if _rows(tape, x) is None or (p is first and func in _IN_PLACE):
        return NotImplemented
    own, shape = tuple(p.shape), tuple(p.shape)
    if len(own) == x.dim() and own[0] == 1:
        own = own[1:]
    if len(own) >= x.dim() or torch.broadcast_shapes(x.shape[1:], own) != x.shape[1:]:
        return NotImplemented
    detached, layout = tape.plain(p), tape.layout
    copies = detached.reshape(1, *[1] * (x.dim() - 1 - len(own)), *own).expand(x.shape[0], *[-1] * (x.dim() - 1))
    made = tape.leaf(copies, p, lambda g: _by_unit(g.reshape(len(g), *shape), layout))
    return func(made, x, **more) if p is first else func(x, made, **more)


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return int(first), int(second)


_IN_PLACE = (Tensor.add_, Tensor.mul_, Tensor.sub_)
_ELEMENTWISE = (Tensor.add, Tensor.mul, Tensor.sub, torch.add, torch.mul, torch.sub, *_IN_PLACE)

RULES: Mapping[Any, Rule] = MappingProxyType(
    {
        F.linear: _linear,
        F.conv2d: _conv2d,
        small_depthwise: _small_depthwise,
        F.group_norm: _group_norm,
        F.layer_norm: _layer_norm,
        F.embedding: _embedding,
        **dict.fromkeys(_ELEMENTWISE, _elementwise),
    }
)
