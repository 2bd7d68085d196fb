"""A masked sum with all its parties in one process: what a simulation runs, and what tests and benchmarks drive."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.session import MaskingError, SurvivorSet
from fed_diffmic.exchange.masking.site import MaskingSite

ADVERTISE, SHARE, MASK, COMMIT, UNMASK = STEPS = ("advertise", "share", "mask", "commit", "unmask")
Lost = Callable[[str, str], bool]


def nobody(site: str, step: str) -> bool:
    """Every site does every step."""
    return False


def masked_sum(
    coordinator: MaskedSum,
    sites: Mapping[str, MaskingSite],
    words: Mapping[str, np.ndarray],
    lost: Lost = nobody,
) -> tuple[np.ndarray, SurvivorSet]:
    """The sum of the sites' words, by the protocol, and the set that it is over.

    Args:
        coordinator: of one attempt.
        sites: those who are there, by name.
        words: of each site.
        lost: whether a site is lost before a step; one that was lost, or whose answer is refused, does no further one.

    Raises:
        RoundError: too few did a step; nothing is unmasked.
    """
    session, gone = coordinator.session, set(coordinator.invited) - set(sites)

    def step(name: str, names: Mapping[str, object], do: Callable[[str], None]) -> None:
        for site in sorted(names):
            if site in gone:
                continue
            if lost(site, name):
                gone.add(site)
                continue
            try:
                do(site)
            except MaskingError:  # by the site, or of what the site sent: it is out from here on
                gone.add(site)

    step(
        ADVERTISE,
        sites,
        lambda site: coordinator.advertised(site, sites[site].advertise(session, coordinator.invited)),
    )
    group = coordinator.group()
    step(SHARE, group, lambda site: coordinator.shared(site, sites[site].share(session, group)))
    sealed = coordinator.deliveries()
    step(MASK, sealed, lambda site: coordinator.add(site, sites[site].mask(session, sealed[site], words[site])))
    text = coordinator.freeze()
    chosen = SurvivorSet.parse(text)
    summed = dict.fromkeys(chosen.summed)
    step(COMMIT, summed, lambda site: coordinator.signed(site, sites[site].commit(session, text)))
    signatures = coordinator.signatures()
    step(UNMASK, signatures, lambda site: coordinator.shares(site, sites[site].unmask(session, signatures)))
    return coordinator.unmask(), chosen
