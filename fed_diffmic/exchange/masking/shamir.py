"""Secrets of 32 bytes shared by threshold (Shamir 1979, "How to share a secret").

A secret is the value at 0 of a random polynomial of degree ``threshold - 1`` over the prime field of 2^256 + 297 (the
smallest prime above 2^256, so that any 32 bytes are an element); a share is its value at a place from 1. Any
``threshold`` shares give the secret; fewer tell nothing of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from fed_diffmic.exchange.payload import PayloadError

PRIME = 2**256 + 297
SECRET_BYTES = 32


class ShareError(PayloadError):
    """Shares that give no secret."""


def share_threshold(sites: int) -> int:
    """How many of ``sites`` must give their shares: ``floor(2 K / 3) + 1``.

    Two sets of that size have more than a third of the sites in common; so while fewer than a third break the rules,
    one that keeps them is in both, and it signs one set only (Bonawitz et al. 2017, section 6.2).
    """
    return 2 * sites // 3 + 1


def most_dishonest(sites: int) -> int:
    """How many of ``sites`` may break the rules, together with the coordinator, and masks hold all the same.

    Two sets of the threshold's size have ``2 t - K`` sites in common at least. As many dishonest ones sign both: the
    honest are told different sets, and give both kinds of share of one site.
    """
    return 2 * share_threshold(sites) - sites - 1


def split(secret: bytes, threshold: int, places: Iterable[int]) -> dict[int, int]:
    """The share of each place, from coefficients that the operating system draws.

    Raises:
        ValueError: the secret is not 32 bytes, a place is not from 1 on, or there are fewer places than the threshold.
    """
    wanted = list(places)
    if len(secret) != SECRET_BYTES or threshold < 1 or len(set(wanted)) < threshold or min(wanted) < 1:
        raise ValueError("a secret of 32 bytes is shared among as many places as the threshold, or more, from 1 on")
    line = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {place: _at(line, place) for place in wanted}


def weights_at_zero(places: Iterable[int]) -> dict[int, int]:
    """Lagrange's weights: what each place's value counts for in the value at 0 (for many secrets of the same places).

    Raises:
        ShareError: a place is there twice or is not from 1 on.
    """
    given = list(places)
    if len(set(given)) != len(given) or any(not 0 < place < PRIME for place in given):
        raise ShareError("the places of shares are not different ones")
    found = {}
    for place in given:
        above, below = 1, 1
        for other in given:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        found[place] = above * pow(below, -1, PRIME) % PRIME
    return found


def join(shares: Mapping[int, int], weights: Mapping[int, int] | None = None) -> bytes:
    """The secret behind as many shares as the threshold; with fewer, or wrong ones, something else.

    Args:
        shares: value of each place.
        weights: :func:`weights_at_zero` of these very places, where they are known already.

    Raises:
        ShareError: the value at 0 is no 32 bytes.
    """
    known = weights_at_zero(shares) if weights is None else weights
    value = sum(known[place] * share for place, share in shares.items()) % PRIME
    if value >= 2 ** (8 * SECRET_BYTES):
        raise ShareError("the shares are not those of one secret")
    return value.to_bytes(SECRET_BYTES, "big")


def _at(line: list[int], place: int) -> int:
    """A polynomial's value, by Horner's rule."""
    value = 0
    for coefficient in reversed(line):
        value = (value * place + coefficient) % PRIME
    return value
