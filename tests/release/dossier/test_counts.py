"""Whatever the counts are: none of few is told, and none can be had by subtraction."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.release.dossier.counts import shown, subgroup_values


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 60)), min_size=1, max_size=9), st.integers(2, 12))
def test_no_count_of_few_can_be_had_by_subtraction(counts: list[int | None], least: int) -> None:
    may = shown(counts, least)
    assert all(
        count is not None and (count == 0 or count >= least) for count, open_ in zip(counts, may, strict=True) if open_
    )
    hidden = [count for count, open_ in zip(counts, may, strict=True) if not open_]
    left = [count for count, open_ in zip(counts, may, strict=True) if open_ and count]
    assert len(hidden) != 1 or not left


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(1, 50)), min_size=1), st.integers(0, 40)
)
def test_no_subgroup_of_few_can_be_had_by_subtraction(given_: dict[str, int | None], more: int) -> None:
    values = {value: {"n": n} for value, n in given_.items()}
    total = sum(n or 1 for n in given_.values()) + more
    may = subgroup_values(values, total, 10)
    hidden = set(values) - may
    assert all((given_[value] or 0) >= 10 for value in may)
    assert not hidden or not may or (len(hidden) > 1 and total - sum(given_[v] or 0 for v in may) >= 10)
