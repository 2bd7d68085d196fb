"""Shared secrets: against a slow twin that solves for the whole polynomial; too few shares tell nothing."""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.exchange.masking import shamir
from fed_diffmic.exchange.masking.shamir import PRIME, ShareError, join, share_threshold, split, weights_at_zero


def slow_value_at_zero(shares: dict[int, int]) -> int:
    """The constant of the polynomial through these points: the Vandermonde system by Gauss, in the field."""
    places = sorted(shares)
    rows = [[pow(x, k, PRIME) for k in range(len(places))] + [shares[x]] for x in places]
    for column in range(len(rows)):
        pivot = next(i for i in range(column, len(rows)) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], PRIME - 2, PRIME)
        rows[column] = [value * inverse % PRIME for value in rows[column]]
        for i, row in enumerate(rows):
            if i != column:
                rows[i] = [(a - row[column] * b) % PRIME for a, b in zip(row, rows[column], strict=True)]
    return rows[0][-1]


def is_prime(n: int) -> bool:
    """Miller and Rabin, with forty bases."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, n)
        if x not in (1, n - 1) and not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_one_and_holds_every_secret() -> None:
    assert PRIME > 2**256 and is_prime(PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, PRIME, 2))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_so_many_shares_give_the_secret_as_the_slow_twin_does(
    secret: bytes, threshold: int, more: int, random: object
) -> None:
    shares = split(secret, threshold, range(1, threshold + more + 1))
    some = dict(random.sample(sorted(shares.items()), threshold))  # type: ignore[attr-defined]
    assert join(some) == secret
    assert slow_value_at_zero(some) == int.from_bytes(secret, "big")
    assert join(shares) == secret  # more than enough are as good
    few = dict(sorted(some.items())[1:])
    if few:
        with suppress(ShareError):
            assert join(few) != secret


def test_one_share_too_few_fits_every_secret() -> None:
    """For any other secret there is a last share that gives it: what is missing is everything."""
    secret, threshold = bytes(31) + b"\x07", 3
    shares = split(secret, threshold, range(1, 6))
    few = {place: shares[place] for place in (1, 2)}
    weights = weights_at_zero([1, 2, 3])
    for other in (b"\xff" * 32, bytes(32), b"\x07" * 32):
        rest = int.from_bytes(other, "big") - sum(weights[p] * v for p, v in few.items())
        assert join({**few, 3: rest * pow(weights[3], -1, PRIME) % PRIME}) == other


def test_shares_are_drawn_anew_over_the_whole_field() -> None:
    one, two = (split(bytes(32), 2, range(1, 4)) for _ in range(2))
    assert all(one[place] != two[place] and one[place] > 2**200 for place in one)


def test_wrong_shares_give_something_else() -> None:
    secret = b"\x11" * 32
    shares = split(secret, 3, range(1, 6))
    for places in combinations(shares, 3):
        wrong = {place: shares[place] for place in places}
        wrong[places[0]] = (wrong[places[0]] + 1) % PRIME
        with suppress(ShareError):
            assert join(wrong) != secret
    with pytest.raises(ShareError):
        join({1: PRIME - 1})
    with pytest.raises(ShareError):
        weights_at_zero([1, 1])
    with pytest.raises(ShareError):
        weights_at_zero([0, 1])


def test_what_cannot_be_shared_is_refused() -> None:
    for secret, threshold, places in ((b"x", 1, [1]), (bytes(32), 3, [1, 2]), (bytes(32), 1, [0]), (bytes(32), 0, [1])):
        with pytest.raises(ValueError, match="secret"):
            split(secret, threshold, places)


def test_two_sets_of_the_threshold_share_more_than_a_third() -> None:
    assert [share_threshold(k) for k in (3, 4, 5, 6, 9, 10, 50)] == [3, 3, 4, 5, 7, 7, 34]
    for sites in range(3, 201):
        overlap = 2 * share_threshold(sites) - sites
        assert 3 * overlap > sites and share_threshold(sites) <= sites
    assert shamir.SECRET_BYTES == 32
