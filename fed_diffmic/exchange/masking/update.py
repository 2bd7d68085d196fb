"""An update as words, and the weighted mean that a sum of words stands for.

What is summed is a site's **change** of each tensor, because it is small and so its quanta are fine: clipped to an L2
norm that all agreed on, times the site's share ``weight / most_weight``, in the order of names. The first word is the
weight itself, an integer, so that it is masked as well and its sum is exact. The mean is then
``reference + sum_k share_k change_k / sum_k share_k``: everybody who learns it learns neither a weight nor a change.

Tensors of whole numbers (counters of batches) are summed as numbers, and their mean is rounded up.

Where a site's change counts by how far its own steps moved it (FedNova: Wang et al. 2020), each site divides its change
by that number ``a_k`` itself, and a second word holds ``share_k a_k``: its sum over that of the weights is ``tau_eff =
sum_k p_k a_k``, and nobody learns the steps of one site.
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
_ROUNDING = 1e-12  # what a norm may exceed its bound by in float64, and a mean of steps theirs


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
        divided: names of the tensors whose change is divided by ``a_k``; none: nothing is.
        most_moves: the largest ``a_k`` of a site, at least 1.
    """

    reference: Mapping[str, np.ndarray]
    summands: int
    norm: float
    most_weight: int
    count: int = 1 << 20
    bits: int = 64
    divided: frozenset[str] = frozenset()
    most_moves: float = 1.0

    def __post_init__(self) -> None:
        if not (1.0 <= self.most_moves < math.inf) or not self.divided <= set(self.reference):
            raise FixedPointError("a sum of divided changes is none of this model")
        if self.most_weight < 1 or self.summands * self.most_weight >= 2 ** (self.bits - 1):
            raise FixedPointError("a sum of so many weights of that size does not fit in a word")
        _ = self.numbers, self.counts, self.shares  # each is refused here if its sum could leave its range

    @property
    def numbers(self) -> FixedPoint:
        """Of the floating-point tensors."""
        return FixedPoint.finest(self.summands, self.norm * (1 + _ROUNDING), self.bits)

    @property
    def counts(self) -> FixedPoint:
        """Of the tensors of whole numbers."""
        return FixedPoint(self.summands, float(self.count), 0, self.bits)

    @property
    def shares(self) -> FixedPoint:
        """Of the word that holds ``share_k a_k / most_moves``."""
        return FixedPoint.finest(self.summands, 1 + _ROUNDING, self.bits)

    @property
    def length(self) -> int:
        """Number of words."""
        return self._first + sum(int(value.size) for value in self.reference.values())

    @property
    def digest(self) -> str:
        """Names the form and the reference's shapes; the reference's values have a digest of their own elsewhere."""
        shapes = {name: [value.dtype.name, *map(str, value.shape)] for name, value in self.reference.items()}
        rules = {"summands": self.summands, "norm": self.norm, "most": self.most_weight, "count": self.count}
        divided = {"divided": sorted(self.divided), "moves": self.most_moves} if self.divided else {}
        return text_digest(canonical({"v": 1, "shapes": shapes, "bits": self.bits, **rules, **divided}))

    def encode(
        self,
        tensors: Mapping[str, np.ndarray],
        weight: int,
        draw: np.random.Generator | None = None,
        moves: float = 1.0,
    ) -> np.ndarray:
        """A site's update as words.

        Args:
            tensors: by the names of the reference, of its shapes.
            weight: of the site, from 1.
            draw: round stochastically; none: to the nearest.
            moves: ``a_k`` of the site, from 1.

        Raises:
            FixedPointError: other names or shapes, a number that is not finite, or a weight or a counter that is too
                large.
        """
        if set(tensors) != set(self.reference) or not 1 <= weight <= self.most_weight:
            raise FixedPointError("an update has other tensors than the model, or a weight beyond what was agreed")
        if not 1.0 <= moves <= self.most_moves:
            raise FixedPointError("an update is of more steps than were agreed")
        scale, share = self._scale(tensors), weight / self.most_weight
        words, form = np.empty(self.length, self.numbers.dtype), self.numbers
        words[0] = weight
        if self.divided:
            words[1:2] = self.shares.encode(np.array([share * moves / self.most_moves]), 1.0, draw)
        for name, part in self._parts(words):
            value, before = tensors[name], self.reference[name]
            if value.shape != before.shape or value.dtype != before.dtype:
                raise FixedPointError("a tensor of an update is of another shape or type than the model's")
            if before.dtype.kind == "f":
                change = (value.astype(np.float64) - before.astype(np.float64)).ravel()
                part[:] = form.encode(change, scale * share / (moves if name in self.divided else 1.0), draw)
            else:
                part[:] = self.counts.encode((value.astype(np.int64) - before.astype(np.int64)).ravel())
        return words

    def mean(self, total: np.ndarray, sites: int) -> tuple[Tensors, int]:
        """The weighted mean of the updates behind a sum, in the tensors' own types, and the sum of the weights.

        Of tensors that are divided there is none (:meth:`rates`).

        Args:
            total: sum of the words.
            sites: how many there are in it.

        Raises:
            FixedPointError: the sum is none of so many updates.
        """
        weight = self._weight(total, sites)
        found: Tensors = {}
        for name, part in self._parts(total):
            before = self.reference[name]
            if name in self.divided:
                continue
            if before.dtype.kind == "f":
                change = self.numbers.decode(part) * (self.most_weight / weight)
                found[name] = (before.astype(np.float64) + change.reshape(before.shape)).astype(before.dtype)
            else:
                steps = np.ceil(self.counts.decode(part) / sites).astype(np.int64).reshape(before.shape)
                found[name] = (before.astype(np.int64) + steps).astype(before.dtype)
        return found, weight

    def rates(self, total: np.ndarray, sites: int) -> tuple[Tensors, float]:
        """``sum_k p_k change_k / a_k`` of the tensors that are divided, in float64, and ``sum_k p_k a_k``.

        Raises:
            FixedPointError: the sum is none of so many updates.
        """
        weight = self._weight(total, sites)
        over = self.most_weight / weight
        effective = float(self.shares.decode(total[1:2])[0]) * self.most_moves * over
        # What rounding may have added or taken: to quanta, and in float64, of which the products before and behind are.
        slack = (sites * self.shares.quantum * over + _ROUNDING) * self.most_moves
        if not 1.0 - slack <= effective <= self.most_moves + slack:
            raise FixedPointError("the sum of the steps is none of so many sites")
        found = {
            name: self.numbers.decode(part).reshape(self.reference[name].shape) * over
            for name, part in self._parts(total)
            if name in self.divided
        }
        return found, effective

    def _weight(self, total: np.ndarray, sites: int) -> int:
        """The sum of the weights, of a sum that is one of this form."""
        if total.shape != (self.length,) or not 1 <= sites <= self.summands:
            raise FixedPointError("the sum is none of updates of this form")
        weight = int(total[0])
        if not sites <= weight <= sites * self.most_weight:
            raise FixedPointError("the sum of the weights is none of so many sites")
        return weight

    @property
    def _first(self) -> int:
        """Where the words of the tensors begin."""
        return 2 if self.divided else 1

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
        at = self._first
        for name in sorted(self.reference):
            size = int(self.reference[name].size)
            yield name, words[at : at + size]
            at += size
