"""Bytes until a method is nearly as good as it becomes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.experiments.reach import SHARE, bytes_to_reach, mean_bytes_to_reach


def rounds(*rows: tuple[float, float | None]) -> list[dict[str, Any]]:
    return [{"bytes_sent": sent, "mean": {} if area is None else {"auroc_macro": area}} for sent, area in rows]


def test_the_first_round_that_is_good_enough_counts_with_all_before_it() -> None:
    history = rounds((10, 0.5), (2, 0.77), (2, 0.776), (2, 0.9), (2, 0.8))  # 0.97 of 0.8 is 0.776
    assert bytes_to_reach(history) == 14
    assert bytes_to_reach(rounds((10, None), (2, 0.8), (2, None))) == 12  # rounds that nobody judged are paid for
    assert bytes_to_reach(rounds((10, 0.9), (2, 0.5))) == 10
    assert math.isnan(bytes_to_reach(rounds((10, None))))


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.4, 1.0)), min_size=1, max_size=8))
def test_it_is_what_a_search_finds(found: list[tuple[int, float]]) -> None:
    areas = np.array([area for _, area in found])
    sent = np.cumsum([count for count, _ in found])
    assert bytes_to_reach(rounds(*found)) == sent[np.argmax(areas >= SHARE * areas[-1])]


def test_the_mean_is_over_runs_and_none_of_them_is_left_out() -> None:
    runs = [{"final_stage": "plain", "stages": {"plain": {"history": rounds((n, 0.8))}}} for n in (4, 6)]
    assert mean_bytes_to_reach(runs) == pytest.approx(5.0)
    runs.append({"final_stage": "plain", "stages": {"plain": {"history": rounds((9, None))}}})
    assert math.isnan(mean_bytes_to_reach(runs)) and math.isnan(mean_bytes_to_reach([]))
