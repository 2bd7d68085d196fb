"""Updates folded into one sum as they come, in integers: neither the order nor the grouping of the sites changes a bit.

What is added of each tensor is the site's change times its share, ``(n_k / m) (w_k - w)``, in fixed point on 64-bit
words (:mod:`fed_diffmic.exchange.masking.fixed_point`, which masked sums are made of too: of the same format and the
same ``m`` both are the same integers). ``n_k`` is the site's weight and ``m`` one number for the run, that of the
heaviest site when the run began. The mean is ``w + (m / sum_k n_k) sum_k (n_k / m) (w_k - w)``.

*How fine.* :data:`FORMS` leave room for :data:`MOST_SITES` sites. In the first one a change is up to 1 and the quantum
``2^-50``: the mean of ``K`` sites is off by at most ``K m / sum_k n_k`` halves of it (equal weights: by one half,
``4.4e-16``), so rounded to float32 it is as good as the mean in float64 for every weight beyond about ``1e-8``.

*What does not fit* is not cut off: a tensor of a site whose change is larger somewhere is added, whole, to a coarser
sum of its own (:data:`FORMS`, next one), and the sums are put together in the end. Which sum it is depends on that
tensor of that site alone, so this changes no bit with the order either. Coarse tensors are named
(:attr:`Fold.coarse`); what is beyond the coarsest form is refused, and nothing of that site is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fed_diffmic.algorithms.base import Algorithm, SiteUpdate, Sums, Tensors
from fed_diffmic.algorithms.sums import bare
from fed_diffmic.exchange.masking.fixed_point import FixedPoint, FixedPointError, add_words
from server.scratch import scratch_array

MOST_SITES = 2**12
FORMS = tuple(FixedPoint(MOST_SITES, 2.0**bound, 50 - bound) for bound in (0, 16, 32, 48))
"""From the finest on: changes up to 1, 65 536, 4.3e9 and 2.8e14."""
_BLOCK = 2**16  # numbers at a time, so that what lies between stays in the processor's cache
_HELD = 2**22  # numbers of small tensors' changes that are held while a site's update is added: 32 MiB
Piece = tuple[np.ndarray, int, int]


class Fold:
    """A round's weighted sums under way.

    Args:
        before: what the sites were sent: global tensors and the algorithm's own.
        kinds: of the exchanged tensors.
        heaviest: weight ``m`` that is written as 1.
        folder: where the sums lie, in files without a name; none: in memory.
        forms: of words, from the finest on.
    """

    def __init__(
        self,
        before: Tensors,
        kinds: Mapping[str, str],
        heaviest: float,
        folder: Path | None = None,
        forms: Sequence[FixedPoint] = FORMS,
    ) -> None:
        self._before = before
        self._kinds = kinds
        self._heaviest = heaviest
        self._folder = folder
        self._forms = forms
        self._words: dict[str, dict[int, np.ndarray]] = {}
        self._counters: Tensors = {}
        self._sites: dict[str, SiteUpdate] = {}
        self._weights: dict[str, float] = {}

    @property
    def coarse(self) -> dict[str, float]:
        """Tensors that a change was too large for the finest form of, with the quantum that it was added in."""
        most = {name: max(sums) for name, sums in self._words.items()}
        return {name: self._forms[form].quantum for name, form in sorted(most.items()) if form}

    def add(self, update: SiteUpdate, weight: float, rate: float | None = None) -> None:
        """One site's update; nothing of it is kept.

        Args:
            weight: ``n_k``.
            rate: what its change of the parameters counts; none: its weight.

        Raises:
            FixedPointError: a change does not fit the coarsest form, or there are too many sites; nothing was added.
            ValueError: the site is in the sum.
        """
        if update.site in self._sites:
            raise ValueError(f"{update.site} is in the sum")
        if len(self._sites) >= self._forms[0].summands:
            raise FixedPointError("there are more sites than the sum leaves room for")
        tensors = {**update.tensors, **update.algorithm_tensors}
        floats = [n for n in self._before if self._kinds.get(n) != "counter" and tensors[n].dtype.kind == "f"]
        shares = {n: (weight if rate is None or self._kinds.get(n) != "parameter" else rate) for n in floats}
        shares = {name: value / self._heaviest for name, value in shares.items()}
        held = self._held(tensors, floats)

        def changes(name: str) -> Iterable[Piece]:
            return held.get(name) or self._changes(name, tensors[name])

        chosen = {name: self._form(changes(name), shares[name]) for name in floats}
        for name in floats:
            self._add(name, chosen[name], changes(name), shares[name])
        for name in tensors.keys() - set(floats):
            self._counters[name] = np.asarray(np.maximum(self._counters.get(name, tensors[name]), tensors[name]))
        self._sites[update.site] = bare(update)
        self._weights[update.site] = weight

    def sums(self) -> Sums:
        """What an algorithm makes the next weights of."""
        return Sums([self._sites[site] for site in sorted(self._sites)], self._mean, self._change, self.coarse)

    def _held(self, tensors: Tensors, names: Sequence[str]) -> dict[str, list[Piece]]:
        """Changes of small tensors, which are read twice, while there is room; those of others are taken twice."""
        held, room = {}, _HELD
        for name in names:
            if 0 < tensors[name].size <= min(_BLOCK, room):
                held[name] = list(self._changes(name, tensors[name]))
                room -= tensors[name].size
        return held

    def _form(self, changes: Iterable[Piece], share: float) -> int:
        # By numpy to the end: Python's `max` passes over what is not a number, behind one that is.
        largest = float(np.max([np.abs(change).max() for change, *_ in changes], initial=0.0))
        for number, form in enumerate(self._forms):
            if largest * share <= form.bound:
                return number
        raise FixedPointError("a change is larger than the sum leaves room for")

    def _add(self, name: str, number: int, changes: Iterable[Piece], share: float) -> None:
        sums, form = self._words.setdefault(name, {}), self._forms[number]
        if number not in sums:
            sums[number] = scratch_array(self._before[name].size, form.dtype, self._folder)
        for change, start, stop in changes:
            add_words(sums[number][start:stop], form.encode(change, share))

    def _changes(self, name: str, value: np.ndarray) -> Iterator[Piece]:
        """Pieces of ``w_k - w`` in float64, with where they lie."""
        after, before = value.reshape(-1), self._before[name].reshape(-1)
        for start in range(0, after.size, _BLOCK):
            stop = min(start + _BLOCK, after.size)
            yield after[start:stop].astype(np.float64) - before[start:stop], start, stop

    def _moved(self, name: str, start: int, stop: int) -> np.ndarray:
        """A piece of the mean change, in float64."""
        found = np.zeros(stop - start)
        for number, words in sorted(self._words[name].items()):
            found += self._forms[number].decode(words[start:stop])
        return found * (self._heaviest / math.fsum(self._weights.values()))

    def _change(self, name: str) -> np.ndarray:
        before = self._before[name]
        found = np.empty(before.size)
        for start in range(0, before.size, _BLOCK):
            stop = min(start + _BLOCK, before.size)
            found[start:stop] = self._moved(name, start, stop)
        return found.reshape(before.shape)

    def _mean(self, name: str) -> np.ndarray:
        if name in self._counters:
            return self._counters[name].copy()
        before = self._before[name]
        flat, found = before.reshape(-1), np.empty(before.size, before.dtype)
        for start in range(0, before.size, _BLOCK):
            stop = min(start + _BLOCK, before.size)
            found[start:stop] = flat[start:stop].astype(np.float64) + self._moved(name, start, stop)
        return found.reshape(before.shape)


def folded(
    algorithm: Algorithm,
    before: Tensors,
    kinds: Mapping[str, str],
    updates: Sequence[SiteUpdate],
    heaviest: float,
    folder: Path | None = None,
) -> Sums:
    """The sums of updates that are all there, each with the share that it has among them.

    Where no share is capped they are, to the bit, those of the same updates folded as they came.

    Args:
        heaviest: as :class:`Fold` takes it; 0: the largest weight among the updates.

    Raises:
        RoundError: the updates are not what the algorithm needs.
        FixedPointError: a change is too large to be summed.
    """
    weights = algorithm.raw_weights(updates)
    rates = algorithm.rates(updates, weights)
    fold = Fold(before, kinds, heaviest or max(weights.values()), folder)
    for update in updates:
        fold.add(update, weights[update.site], rates[update.site])
    return fold.sums()
