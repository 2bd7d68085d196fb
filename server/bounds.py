"""How far one site may move a run: what the configuration sets, and what it comes to among so many sites.

The same code runs in a simulation, whose configuration has the same keys and sets nothing unless it is told to.
"""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.algorithms.shares import LEAST_SITES, effective_share
from fed_diffmic.config.simulation import RunConfig

OFF, CLIP, REFUSE = "off", "clip", "refuse"


@dataclass(frozen=True)
class Bounds:
    """What limits one site.

    Attributes:
        max_share: the largest share of one site in averages of updates, in the class prior and in means, among three
            sites or more. Below 1 the choice of the round and the calibration withstand one site, too.
        norm_rule: what is done with an update that is much larger than those of the others: ``off`` (nothing),
            ``clip`` (it is made smaller), ``refuse`` (the round goes on without it).
        norm_multiple: how many times the median of the round's norms an update may be.
    """

    max_share: float = 1.0
    norm_rule: str = OFF
    norm_multiple: float = 5.0

    @staticmethod
    def of(run: RunConfig) -> Bounds:
        """Those of a configuration."""
        return Bounds(run.max_share, run.norm_rule, run.norm_multiple)

    def share(self, sites: int) -> float:
        """The cap among ``sites`` sites."""
        return effective_share(self.max_share, sites)

    def guarded(self, sites: int) -> bool:
        """Whether one of ``sites`` sites is to be withstood where they decide together."""
        return self.max_share < 1.0 and sites >= LEAST_SITES
