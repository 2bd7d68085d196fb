"""Which rows of a batch are whose: images in a row, those of one unit next to each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """``N`` images of ``U`` units.

    Attributes:
        counts: images of each unit, in order; none is 0.
        device: of what is laid out.
    """

    counts: tuple[int, ...]
    device: torch.device

    @property
    def units(self) -> int:
        """``U``."""
        return len(self.counts)

    @cached_property
    def images(self) -> int:
        """``N``."""
        return sum(self.counts)

    @cached_property
    def most(self) -> int:
        """Images of the unit that has most."""
        return max(self.counts)

    @cached_property
    def even(self) -> bool:
        """Whether all units have as many."""
        return min(self.counts) == self.most

    @cached_property
    def of(self) -> Tensor:
        """Unit of each image, ``(N,)`` int64."""
        return torch.arange(self.units).repeat_interleave(torch.tensor(self.counts)).to(self.device)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First image of each unit, and ``N``: ``U + 1`` numbers."""
        found = [0]
        for count in self.counts:
            found.append(found[-1] + count)
        return tuple(found)

    def rows_each(self, rows: Tensor) -> int | None:
        """Rows of each image where the first dimension holds images with their rows in order; none: it cannot."""
        count = rows.shape[0] if rows.dim() else 0
        return count // self.images if count and count % self.images == 0 else None

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the images of each unit: ``(N, ...)`` to ``(U, ...)``."""
        if self.even:
            return values if self.most == 1 else values.unflatten(0, (self.units, self.most)).sum(dim=1)
        return values.new_zeros((self.units, *values.shape[1:])).index_add_(0, self.of, values)

    def together(self, values: Tensor) -> Tensor:
        """Tokens of each unit in one row, ``(N, T, ...)`` to ``(U, most * T, ...)``; zeros fill it up."""
        if not self.even:
            place = (
                torch.arange(self.images, device=self.device) - torch.tensor(self.starts, device=self.device)[self.of]
            )
            padded = values.new_zeros((self.units, self.most, *values.shape[1:]))
            padded[self.of, place] = values
            return padded.flatten(1, 2)
        return values.unflatten(0, (self.units, self.most)).flatten(1, 2)

    def parts(self, entries: int, most: int) -> Iterator[tuple[Layout, slice, slice]]:
        """Units in parts of at most ``most`` entries, ``entries`` each: layout of the part, its units, its images."""
        size = max(1, most // max(1, entries))
        for start in range(0, self.units, size):
            stop = min(start + size, self.units)
            part = Layout(self.counts[start:stop], self.device)
            yield part, slice(start, stop), slice(self.starts[start], self.starts[stop])
