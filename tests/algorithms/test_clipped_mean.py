"""The norm-clipped mean: by hand, and what one false site can do to it."""

import math

import numpy as np
import pytest

from fed_diffmic.algorithms import SiteUpdate, build_algorithm
from fed_diffmic.config.simulation import StrategyConfig

KINDS = {"w": "parameter", "v": "parameter", "mean": "buffer", "seen": "counter"}
START = {"w": np.zeros(2, np.float32), "v": np.zeros(1), "mean": np.zeros(1), "seen": np.array(0)}


def update(site, w, v, n=1, mean=0.0, seen=1):
    tensors = {"w": np.array(w, np.float32), "v": np.array([v]), "mean": np.array([mean]), "seen": np.array(seen)}
    return SiteUpdate(site, tensors, n)


def after(updates, update_norm=0.0, **settings):
    config = StrategyConfig(name="clipped_mean", options={"update_norm": update_norm}, **settings)
    algorithm = build_algorithm(config)
    return algorithm.aggregate(START, KINDS, updates, {}, 1)[0]


def test_by_hand_with_a_length_that_was_given():
    """Norms 5 and 1, M = 2.5, images 1 and 3: w = 0.25 * (3, 0) / 2 + 0.75 * (0, 0), v = 0.25 * 4 / 2 + 0.75 * 1."""
    found = after([update("a", [3, 0], 4.0), update("b", [0, 0], 1.0, n=3)], update_norm=2.5)
    np.testing.assert_allclose(found["w"], [0.375, 0.0])
    assert found["v"][0] == pytest.approx(1.25) and found["w"].dtype == np.float32


def test_the_median_norm_holds_a_site_that_sends_anything():
    honest = [update(name, [1, 0], 0.0, mean=1.0, seen=4) for name in "abcd"]
    false = update("x", [-1e6, 1e6], 0.0, mean=1e9, seen=10**9)
    found = after([*honest, false])
    np.testing.assert_allclose(found["w"], [0.8 - 0.2 / math.sqrt(2), 0.2 / math.sqrt(2)], rtol=1e-5)
    assert found["mean"][0] == 1.0 and found["seen"] == 4


def test_who_is_shorter_is_not_touched_and_nothing_is_divided_by_nought():
    found = after([update("a", [0.1, 0], 0.0), update("b", [0, 0], 0.0)], update_norm=1.0)
    np.testing.assert_allclose(found["w"], [0.05, 0.0])
    np.testing.assert_array_equal(after([update("a", [0, 0], 0.0)])["w"], [0, 0])
