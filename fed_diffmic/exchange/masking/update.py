"""An update as words, and the weighted mean that a sum of words stands for.

What is summed is a site's **change** of each tensor, because it is small and so its quanta are fine: clipped to an L2
norm that all agreed on, times the site's share ``weight / most_weight``, in the order of names. The first word is the
weight itself, an integer, so that it is masked as well and its sum is exact. The mean is then
``reference + sum_k share_k change_k / sum_k share_k``: everybody who learns it learns neither a weight nor a change.

Tensors of whole numbers (counters of batches) are summed as numbers, and their mean is rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.masking.fixed_point import FixedPoint, FixedPointError
from fed_diffmic.exchange.payload import text_digest

Tensors = dict[str, np.ndarray]
_ROUNDING = 1e-12  # what a norm may exceed its bound by in float64


@dataclass(frozen=True)
class UpdateForm:
    """How the updates of a sum are written as words; the same at every site.

    Attributes:
        reference: what all sites started from, by name: weights, and an algorithm's own tensors.
        summands: how many sites there are at most.
        norm: the largest L2 norm of a change over all floating-point tensors; more is scaled down to it at the site.
        most_weight: the largest weight of a site.
        count: the largest change of a counter.
        bits: of a word.
    """

    reference: Mapping[str, np.ndarray]
    summands: int
    norm: float
    most_weight: int
    count: int = 1 << 20
    bits: int = 64

    def __post_init__(self) -> None:
        if self.most_weight < 1 or self.summands * self.most_weight >= 2 ** (self.bits - 1):
            raise FixedPointError("a sum of so many weights of that size does not fit in a word")
        _ = self.numbers, self.counts  # each is refused here if its sum could leave its range

    @property
    def numbers(self) -> FixedPoint:
        """Of the floating-point tensors."""
        return FixedPoint.finest(self.summands, self.norm * (1 + _ROUNDING), self.bits)

    @property
    def counts(self) -> FixedPoint:
        """Of the tensors of whole numbers."""
        return FixedPoint(self.summands, float(self.count), 0, self.bits)

    @property
    def length(self) -> int:
        """Number of words."""
        return 1 + sum(int(value.size) for value in self.reference.values())

    @property
    def digest(self) -> str:
        """Names the form and the reference's shapes; the reference's values have a digest of their own elsewhere."""
        shapes = {name: [value.dtype.name, *map(str, value.shape)] for name, value in self.reference.items()}
        rules = {"summands": self.summands, "norm": self.norm, "most": self.most_weight, "count": self.count}
        return text_digest(canonical({"v": 1, "shapes": shapes, "bits": self.bits, **rules}))

    def encode(
        self, tensors: Mapping[str, np.ndarray], weight: int, draw: np.random.Generator | None = None
    ) -> np.ndarray:
        """A site's update as words.

        Args:
            tensors: by the names of the reference, of its shapes.
            weight: of the site, from 1.
            draw: round stochastically; none: to the nearest.

        Raises:
            FixedPointError: other names or shapes, a number that is not finite, or a weight or a counter that is too
                large.
        """
        if set(tensors) != set(self.reference) or not 1 <= weight <= self.most_weight:
            raise FixedPointError("an update has other tensors than the model, or a weight beyond what was agreed")
        scale, share = self._scale(tensors), weight / self.most_weight
        words, form = np.empty(self.length, self.numbers.dtype), self.numbers
        words[0] = weight
        for name, part in self._parts(words):
            value, before = tensors[name], self.reference[name]
            if value.shape != before.shape or value.dtype != before.dtype:
                raise FixedPointError("a tensor of an update is of another shape or type than the model's")
            if before.dtype.kind == "f":
                change = (value.astype(np.float64) - before.astype(np.float64)).ravel()
                part[:] = form.encode(change, scale * share, draw)
            else:
                part[:] = self.counts.encode((value.astype(np.int64) - before.astype(np.int64)).ravel())
        return words

    def mean(self, total: np.ndarray, sites: int) -> tuple[Tensors, int]:
        """The weighted mean of the updates behind a sum, in the tensors' own types, and the sum of the weights.

        Args:
            total: sum of the words.
            sites: how many there are in it.

        Raises:
            FixedPointError: the sum is none of so many updates.
        """
        if total.shape != (self.length,) or not 1 <= sites <= self.summands:
            raise FixedPointError("the sum is none of updates of this form")
        weight = int(total[0])
        if not sites <= weight <= sites * self.most_weight:
            raise FixedPointError("the sum of the weights is none of so many sites")
        found: Tensors = {}
        for name, part in self._parts(total):
            before = self.reference[name]
            if before.dtype.kind == "f":
                change = self.numbers.decode(part) * (self.most_weight / weight)
                found[name] = (before.astype(np.float64) + change.reshape(before.shape)).astype(before.dtype)
            else:
                steps = np.ceil(self.counts.decode(part) / sites).astype(np.int64).reshape(before.shape)
                found[name] = (before.astype(np.int64) + steps).astype(before.dtype)
        return found, weight

    def _scale(self, tensors: Mapping[str, np.ndarray]) -> float:
        """What a change is multiplied by so that its norm is within the bound."""
        total = 0.0
        for name, before in self.reference.items():
            if before.dtype.kind == "f" and tensors[name].shape == before.shape:
                change = tensors[name].astype(np.float64) - before.astype(np.float64)
                total += float(np.vdot(change, change))
        if not math.isfinite(total):
            raise FixedPointError("a number of the update is not finite")
        size = math.sqrt(total)
        return min(1.0, self.norm / size) if size else 1.0

    def _parts(self, words: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The words of each tensor, in the order of names."""
        at = 1
        for name in sorted(self.reference):
            size = int(self.reference[name].size)
            yield name, words[at : at + size]
            at += size
