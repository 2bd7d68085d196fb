"""Why a run's figures have one set of sites: what a second one would tell, by trying every one that there could be."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import combinations

import pytest

from fed_diffmic.exchange.masking.shamir import share_threshold


def least_together(first: Collection[int], second: Collection[int]) -> int:
    """Fewest sites that a combination of two sums is of: of one of them, or of their difference."""
    return min(len(set(first)), len(set(second)), len(set(first) ^ set(second)))


def second_sets(sites: int, gone: int, least: int) -> Iterator[tuple[int, ...]]:
    """Every set of at least so many sites without the one that is gone."""
    left = [site for site in range(sites) if site != gone]
    for size in range(least, sites):
        yield from combinations(left, size)


@pytest.mark.parametrize("sites", range(3, 11))
def test_after_a_site_left_no_second_set_hides_it_among_three_below_ten_sites(sites: int) -> None:
    """``min_sites`` of 2: each site's figures with two others' at least, in whatever is opened."""
    everyone = range(sites)
    hides = [s for s in second_sets(sites, 0, share_threshold(sites)) if least_together(everyone, s) >= 3]
    assert bool(hides) == (sites >= 10)
    assert all(sites - len(chosen) >= 3 for chosen in hides)  # two who are there go unheard for the one who left


@pytest.mark.parametrize("sites", [3, 4, 5, 6])
def test_of_fewer_than_six_none_would_however_few_signed_it(sites: int) -> None:
    everyone = range(sites)
    hides = [s for s in second_sets(sites, 0, 1) if least_together(everyone, s) >= 3]
    assert bool(hides) == (sites >= 6)
