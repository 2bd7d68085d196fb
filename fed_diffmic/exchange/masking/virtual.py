"""Keys of virtual sites: made of the run's seed, so that processes that share nothing else know them.

Whoever knows the seed can make them. A simulation has no one to keep anything from; it runs the protocol for its
metrics and its cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.provision.keys import PrivateKey, PublicKey

_ORDER_BITS = 255  # below the order of P-256


@cache
def virtual_key(seed: int, site: str) -> PrivateKey:
    """The key that a virtual site is enrolled with."""
    digest = hashlib.sha256(f"fed_diffmic virtual site\0{seed}\0{site}".encode()).digest()
    return ec.derive_private_key(1 + (int.from_bytes(digest, "big") >> (256 - _ORDER_BITS)), ec.SECP256R1())


class VirtualRoster(Mapping[str, PublicKey]):
    """The roster of virtual sites: whoever is named is in it.

    Args:
        seed: of the run.
        sites: names that are known; only for those who list them.
    """

    def __init__(self, seed: int, sites: tuple[str, ...] = ()) -> None:
        self.seed = seed
        self.sites = sites

    def __getitem__(self, site: str) -> PublicKey:
        return virtual_key(self.seed, site).public_key()

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)
