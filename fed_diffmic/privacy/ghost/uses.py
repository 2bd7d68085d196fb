"""How a unit's gradient follows from what went into a layer and what came back: norms and weighted sums.

One call of a layer is a *use* of its weight. Of a linear layer on ``T`` tokens an image, with inputs ``a_t`` and output
gradients ``g_t``, a unit's gradient is ``sum_t g_t a_t^T`` over all tokens of all its images, and its squared norm
``sum_st (a_s . a_t)(g_s . g_t)``, for which no gradient is made (Goodfellow 2015; Li et al. 2022, arXiv 2110.05679,
section 4). A convolution is a linear layer on unfolded patches (Bu et al. 2022), a look-up in a table one on one-hot
inputs. The sum of clipped gradients needs no second pass backward (book-keeping, Bu et al. 2023, arXiv 2210.00038).

Letters: ``N`` images, ``U`` units, ``T`` tokens of an image, ``d`` inputs, ``p`` outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_diffmic.privacy.ghost.layout import Layout

ROUNDINGS = 2
"""Units of rounding, of the squared length if all tokens of a unit pulled the same way, that are added to its squared
norm: where tokens cancel, it could come out too small, even negative. Constructed tokens reached half of one."""

NARROW = 2.0**-12
"""Share of that length below which a squared norm is computed again in float64: what is added would be felt."""

SUM_ROUNDINGS = 8
"""Roundings, of that length (not squared), that are in the sum of gradients even where tokens cancel exactly."""

MOST_ENTRIES = 1 << 24
"""Numbers that are made at a time for a norm (64 MB in float32)."""


class Use(Protocol):
    """One call of a layer, as the weight sees it."""

    def product(self, layout: Layout) -> Tensor:
        """Each unit's gradient, ``(U, *shape)``."""

    def weighted(self, factors: Tensor, layout: Layout) -> Tensor:
        """Sum over units of their gradients times ``factors (U,)``."""


class TokenUse(Use, Protocol):
    """A use whose gradient is a sum over tokens of outer products."""

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Inputs ``(N, T, d)`` and output gradients ``(N, T, p)``."""

    def part(self, images: slice) -> TokenUse:
        """The use by some of the images."""

    @property
    def count(self) -> int:
        """``T``."""

    @property
    def widths(self) -> tuple[int, int]:
        """``d`` and ``p``; ``d`` is 0 where inputs are one-hot."""


@dataclass(frozen=True)
class Rows:
    """Gradients that were made: ``(U, *shape)``."""

    values: Tensor

    def product(self, layout: Layout) -> Tensor:
        """What it holds."""
        return self.values

    def weighted(self, factors: Tensor, layout: Layout) -> Tensor:
        """Their weighted sum."""
        return torch.tensordot(factors.to(self.values.dtype), self.values, dims=1)


@dataclass(frozen=True)
class Linear:
    """A linear layer on tokens: inputs ``a (N, T, d)``, output gradients ``g (N, T, p)``."""

    a: Tensor
    g: Tensor

    @property
    def count(self) -> int:
        """``T``."""
        return self.a.shape[1]

    @property
    def widths(self) -> tuple[int, int]:
        """``d`` and ``p``."""
        return self.a.shape[2], self.g.shape[2]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """As they are."""
        return self.a, self.g

    def part(self, images: slice) -> Linear:
        """Some of the images."""
        return Linear(self.a[images], self.g[images])

    def product(self, layout: Layout) -> Tensor:
        """``(U, p, d)``."""
        return torch.bmm(layout.together(self.g).transpose(1, 2), layout.together(self.a))

    def weighted(self, factors: Tensor, layout: Layout) -> Tensor:
        """``(p, d)``."""
        scaled = self.g * _of_images(factors, layout, self.g)
        return scaled.flatten(0, 1).T @ self.a.flatten(0, 1)


@dataclass(frozen=True)
class Lookup:
    """Rows taken from a table: their numbers ``index (N, T)``, output gradients ``g (N, T, p)``, ``rows`` in all."""

    index: Tensor
    g: Tensor
    rows: int

    @property
    def count(self) -> int:
        """``T``."""
        return self.index.shape[1]

    @property
    def widths(self) -> tuple[int, int]:
        """One-hot inputs, and ``p``."""
        return 0, self.g.shape[2]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Numbers ``(N, T, 1)`` in place of the one-hot inputs."""
        return self.index.unsqueeze(2), self.g

    def part(self, images: slice) -> Lookup:
        """Some of the images."""
        return Lookup(self.index[images], self.g[images], self.rows)

    def product(self, layout: Layout) -> Tensor:
        """``(U, rows, p)``."""
        place = layout.of.unsqueeze(1) * self.rows + self.index
        made = self.g.new_zeros(layout.units * self.rows, self.g.shape[2])
        return made.index_add_(0, place.flatten(), self.g.flatten(0, 1)).unflatten(0, (layout.units, self.rows))

    def weighted(self, factors: Tensor, layout: Layout) -> Tensor:
        """``(rows, p)``."""
        scaled = self.g * _of_images(factors, layout, self.g)
        made = self.g.new_zeros(self.rows, self.g.shape[2])
        return made.index_add_(0, self.index.flatten(), scaled.flatten(0, 1))


@dataclass(frozen=True)
class Convolution:
    """A convolution in two dimensions: input ``x (N * r, d, H, W)``, output gradients ``g (N * r, p, h, w)``.

    Attributes:
        shape: of the weight, ``(p, d / groups, k, l)``.
        each: maps of one image, ``r``.
        stride, padding, dilation, groups: the layer's.
    """

    x: Tensor
    g: Tensor
    shape: tuple[int, ...]
    each: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def count(self) -> int:
        """``T``: cells of all maps of an image."""
        return self.each * self.g.shape[2] * self.g.shape[3]

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of a patch, and ``p``."""
        return self.shape[1] * self.shape[2] * self.shape[3], self.shape[0]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Patches ``(N, T, d k l)`` and output gradients ``(N, T, p)``; of a convolution in one group."""
        if self.shape[2:] == (1, 1) and not any(self.padding):
            a = self.x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        else:
            a = F.unfold(self.x, tuple(self.shape[2:]), self.dilation, self.padding, self.stride)
        a, g = a.transpose(1, 2), self.g.flatten(2).transpose(1, 2)
        return a.reshape(-1, self.count, a.shape[2]), g.reshape(-1, self.count, g.shape[2])

    def part(self, images: slice) -> Convolution:
        """Some of the images."""
        rows = slice(images.start * self.each, images.stop * self.each)
        return replace(self, x=self.x[rows], g=self.g[rows])

    def product(self, layout: Layout) -> Tensor:
        """``(U, *shape)``."""
        if self.groups == self.x.shape[1] == self.shape[0]:
            return layout.sum(self._depthwise().unflatten(0, (-1, self.each)).sum(dim=1))
        if self.groups == 1 and self.shape[2:] == (1, 1):
            return Linear(*self.tokens()).product(layout).view(layout.units, *self.shape)
        spans = zip(layout.starts[:-1], layout.starts[1:], strict=True)
        return torch.stack([self.part(slice(*span))._gradient() for span in spans])

    def weighted(self, factors: Tensor, layout: Layout) -> Tensor:
        """Of the weight's shape."""
        each = factors.to(self.g.dtype)[layout.of].repeat_interleave(self.each)
        return replace(self, g=self.g * each.view(-1, 1, 1, 1))._gradient()

    def _gradient(self) -> Tensor:
        """The weight's gradient of all maps together."""
        weight = self.g.new_empty(1).expand(self.shape)  # its values are not read
        found: Tensor = torch.ops.aten.convolution_backward(
            self.g, self.x, weight, None, self.stride, self.padding, self.dilation, False, [0, 0], self.groups,
            [False, True, False],
        )[1]  # fmt: skip
        return found

    def _depthwise(self) -> Tensor:
        """Each map's gradient ``(N * r, p, 1, k, l)``, entry by entry of the kernel: no patches are made."""
        (up, left), (rows, columns) = self.padding, self.g.shape[2:]
        x = F.pad(self.x, (left, left, up, up)) if up or left else self.x
        found = []
        for i in range(self.shape[2]):
            for j in range(self.shape[3]):
                top, first = i * self.dilation[0], j * self.dilation[1]
                below, last = top + (rows - 1) * self.stride[0] + 1, first + (columns - 1) * self.stride[1] + 1
                seen = x[:, :, top : below : self.stride[0], first : last : self.stride[1]]
                found.append((seen * self.g).sum(dim=(2, 3)))
        return torch.stack(found, dim=2).unflatten(2, (1, *self.shape[2:]))


def _of_images(factors: Tensor, layout: Layout, like: Tensor) -> Tensor:
    return factors.to(like.dtype)[layout.of].view(-1, *[1] * (like.dim() - 1))


def by_tokens(uses: Sequence[Use], layout: Layout) -> list[TokenUse]:
    """The uses, where a unit's norm is better taken from its tokens; empty: its gradient is to be made.

    Tokens, where the two Gram matrices of a unit are smaller than its gradient: ``2 T^2 < p d`` (Bu et al. 2022, the
    layerwise choice), ``T`` over all calls and all images of the unit.
    """
    found: list[TokenUse] = []
    for use in uses:
        if not isinstance(use, (Linear, Lookup, Convolution)) or type(use) is not type(uses[0]):
            return []
        if isinstance(use, Convolution) and use.groups != 1:
            return []
        found.append(use)
    count = layout.most * sum(use.count for use in found)
    inputs, outputs = found[0].widths
    if isinstance(found[0], Lookup):
        inputs = found[0].rows
    return found if 2 * count * count < inputs * outputs else []


def squared_norms(uses: Sequence[TokenUse], layout: Layout) -> Tensor:
    """Squared norm of each unit's gradient over all its tokens in all calls, ``(U,)`` float64 (:data:`ROUNDINGS`)."""
    count = layout.most * sum(use.count for use in uses)
    inputs, outputs = uses[0].widths
    found = []
    for part, _, images in layout.parts(count * (inputs + outputs + 2 * count), MOST_ENTRIES):
        pairs = [use.part(images).tokens() for use in uses]
        a = torch.cat([part.together(pair[0]) for pair in pairs], dim=1)
        g = torch.cat([part.together(pair[1]) for pair in pairs], dim=1)
        found.append(_not_below(a, g, one_hot=inputs == 0))
    return torch.cat(found)


def _not_below(a: Tensor, g: Tensor, *, one_hot: bool) -> Tensor:
    """Squared norms ``(U,)`` with what rounding may have taken from them."""
    squares, together, lost = _gram(a, g, one_hot=one_hot)
    rounding = torch.finfo(g.dtype).eps
    found = squares + ROUNDINGS * rounding * together + lost
    narrow = squares < NARROW * together
    if g.dtype != torch.float64 and bool(narrow.any()):
        exact, _, _ = _gram(a[narrow].double(), g[narrow].double(), one_hot=one_hot)
        found[narrow] = exact.clamp_min(0) + (SUM_ROUNDINGS * rounding) ** 2 * together[narrow] + lost[narrow]
    return found.clamp_min(0)


def _gram(a: Tensor, g: Tensor, *, one_hot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Squares of ``|sum_t g_t a_t^T|``, of ``sum_t |g_t| |a_t|``, and the most that underflow took: ``(U,)``."""
    tokens = g.shape[1]
    if tokens == 1:
        outs = g.square().sum(dim=2).double()
        ins = torch.ones_like(outs) if one_hot else a.square().sum(dim=2).double()
        squares = (ins * outs).squeeze(1)
    else:
        outputs = torch.bmm(g, g.transpose(1, 2))
        inputs = (a == a.transpose(1, 2)).to(g.dtype) if one_hot else torch.bmm(a, a.transpose(1, 2))
        ins, outs = (m.diagonal(dim1=1, dim2=2).to(torch.float64, copy=True) for m in (inputs, outputs))
        squares = inputs.mul_(outputs).sum(dim=(1, 2), dtype=torch.float64)
    together = (ins * outs).sqrt().sum(dim=1).square()
    all_in, all_out = (each.sqrt().sum(dim=1).square() for each in (ins, outs))
    lost = torch.finfo(g.dtype).tiny * (g.shape[2] * all_in + a.shape[2] * all_out + tokens**2)
    return squares, together, lost
