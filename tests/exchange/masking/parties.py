"""Sites and a coordinator of a masked sum, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.driver import Lost, masked_sum, nobody
from fed_diffmic.exchange.masking.session import MaskingError, Session, SurvivorSet
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import MemoryStore
from fed_diffmic.exchange.seal import Signed

SESSION = Session("run", "federated", "guidance", "train", 1, 1, "ab" * 32, 64, 20, 7)


@cache
def enrolled(name: str) -> ec.EllipticCurvePrivateKey:
    """A site's key; P-256, which is quicker than what sites make, and taken like it."""
    return ec.generate_private_key(ec.SECP256R1())


def words_of(name: str, session: Session = SESSION, low: int = -(2**40), high: int = 2**40) -> np.ndarray:
    """A site's words, the same each time."""
    rng = np.random.default_rng(sum(name.encode()))
    signed = rng.integers(low, high, session.length).astype(f"<i{session.bits // 8}")
    return signed.view(f"<u{session.bits // 8}")


@dataclass
class Parties:
    """Some sites with one roster, and their memories."""

    count: int = 3
    min_sites: int = 2
    stores: dict[str, MemoryStore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [f"site-{index:02d}" for index in range(self.count)]
        self.roster = {name: enrolled(name).public_key() for name in self.names}
        self.stores = {name: MemoryStore() for name in self.names}
        self.sites = {name: self.site(name) for name in self.names}

    def site(self, name: str) -> MaskingSite:
        """A site as it comes up: all that it knows lies in its store."""
        return MaskingSite(name, enrolled(name), self.roster, self.stores[name], self.min_sites)

    def restarted(self, name: str) -> MaskingSite:
        self.sites[name] = self.site(name)
        return self.sites[name]

    def coordinator(self, session: Session = SESSION, least: int = 1) -> MaskedSum:
        return MaskedSum(session, self.roster, self.names, least)

    def total(self, names: Iterable[str], session: Session = SESSION) -> np.ndarray:
        """The plain sum, in unsigned integers that wrap around."""
        return np.sum([words_of(name, session) for name in names], axis=0, dtype=f"<u{session.bits // 8}")

    def sum(self, session: Session = SESSION, lost: Lost = nobody) -> tuple[np.ndarray, SurvivorSet]:
        words = {name: words_of(name, session) for name in self.names}
        return masked_sum(self.coordinator(session), self.sites, words, lost)

    # ---- up to a step -------------------------------------------------------------------------
    def advertise(self, session: Session = SESSION) -> dict[str, Signed]:
        return {name: site.advertise(session, self.names) for name, site in self.sites.items()}

    def share(self, session: Session = SESSION) -> tuple[dict[str, Signed], dict[str, dict[str, str]]]:
        """Everybody's keys, and by recipient what the others sealed for it."""
        keys = self.advertise(session)
        sealed = {name: site.share(session, keys) for name, site in self.sites.items()}
        return keys, {
            name: {other: sealed[other][name] for other in self.names if other != name} for name in self.names
        }

    def mask(self, session: Session = SESSION) -> dict[str, np.ndarray]:
        _, sealed = self.share(session)
        return {name: self.sites[name].mask(session, sealed[name], words_of(name, session)) for name in self.names}

    def set_of(self, summed: Iterable[str], name: str | None = None, session: Session = SESSION, **other: Any) -> str:
        """A set over these sites and no others, as a coordinator would write it for this group."""
        from fed_diffmic.exchange.masking import keys

        state = self.stores[name or self.names[0]].load(session.place)
        assert state is not None
        group = keys.group_digest(session, state["group"])
        summed = tuple(sorted(summed))
        dropped = tuple(sorted(set(self.names) - set(summed)))
        return replace(SurvivorSet(session.digest, group, summed, dropped), **other).text


def refused(reason: str, call: Callable[[], Any]) -> str:
    """Whether a call is refused for this reason; its sentence."""
    with pytest.raises(MaskingError) as caught:
        call()
    assert caught.value.reason == reason, caught.value
    return caught.value.cause
