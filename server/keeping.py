"""What becomes of each good update as it comes: it is folded into the round's sum and dropped, or set aside.

It is folded at once where the algorithm takes sums and nothing has to be known of the others to say how much it counts.
A cap on one site's share, a rule that measures an update against the median, steps that differ, and noise for a whole
site need all of them first: then, and where the algorithm sees single updates, they lie in the run's folder in files
that have no name (:mod:`server.scratch`) until the round is aggregated. For an algorithm that takes sums both end in
the same integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fed_diffmic.algorithms.base import SUMS, Algorithm, SiteUpdate, Sums
from server.bounds import OFF
from server.client_level import ClientLevel
from server.exchange import Keep
from server.federation import Federation
from server.fold import Fold
from server.scratch import scratch_copy
from server.stage import StageWork
from server.trail import sent_in_next


class SetAside:
    """Updates one by one.

    Args:
        folder: where they lie; none: in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._updates: dict[str, SiteUpdate] = {}

    def take(self, update: SiteUpdate) -> None:
        """Keep it; raises MachineError where there is no room."""
        whole = scratch_copy({**update.tensors, **update.algorithm_tensors}, self._folder)
        self._updates[update.site] = replace(
            update,
            tensors={name: whole[name] for name in update.tensors},
            algorithm_tensors={name: whole[name] for name in update.algorithm_tensors},
        )

    def updates(self) -> list[SiteUpdate]:
        """In the order of names."""
        return [self._updates[site] for site in sorted(self._updates)]

    def sums(self) -> Sums | None:
        """There are none."""
        return None


class FoldedIn:
    """Updates added to one sum.

    Args:
        algorithm: takes sums; says how much a site counts.
        fold: the sum.
    """

    def __init__(self, algorithm: Algorithm, fold: Fold) -> None:
        self._algorithm = algorithm
        self._fold = fold

    def take(self, update: SiteUpdate) -> None:
        """Add it; raises FixedPointError, with nothing added, where it is too large."""
        self._fold.add(update, self._algorithm.raw_weights([update])[update.site])

    def updates(self) -> list[SiteUpdate]:
        """There are none."""
        return []

    def sums(self) -> Sums | None:
        """Of all that came."""
        return self._fold.sums()


def keeping(run: Federation, work: StageWork, noise: ClientLevel) -> Keep:
    """What takes the updates of the next round."""
    algorithm, folder = work.algorithm, run.store.checkpoints
    alone = algorithm.needs == SUMS and not algorithm.needs_steps and algorithm.max_share >= 1.0
    if not alone or noise.on or run.hooks.bounds.norm_rule != OFF:
        return SetAside(folder)
    before = sent_in_next(work.progress, algorithm)
    return FoldedIn(algorithm, Fold(before, work.kinds, heaviest(run) or 1.0, folder))


def heaviest(run: Federation) -> float:
    """The largest weight of a site when the run began, which no late one and no resumed run changes; 0: not known."""
    if run.spec.strategy.weighting != "examples":
        return 1.0
    counts: Mapping[str, Mapping[str, int]] = run.run_state.counts
    return float(max((said["train"] for said in counts.values()), default=0))
