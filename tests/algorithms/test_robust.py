"""Aggregations that see every update look at a piece of all of them at a time; the whole at once is their slow twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.algorithms import SiteUpdate, build_algorithm, robust
from fed_diffmic.algorithms.krum import scores
from fed_diffmic.algorithms.robust import coordinatewise
from fed_diffmic.config.simulation import StrategyConfig

KINDS = {"w": "parameter", "one": "buffer", "none": "parameter", "count": "counter"}


def updates(sites: int, size: int, seed: int) -> list[SiteUpdate]:
    rng, found = np.random.default_rng(seed), []
    for number in range(sites):
        tensors = {
            "w": rng.standard_normal((size, 3)).astype(np.float32),
            "one": np.float32(rng.standard_normal()) * np.ones((), np.float32),
            "none": np.zeros((0, 2), np.float32),
            "count": np.array(rng.integers(9), np.int64),
        }
        found.append(SiteUpdate(f"s{number}", tensors, 1))
    return found


@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from(["median", "mean"]), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_piece_by_piece_is_the_whole_at_once(sites: int, size: int, how: str, seed: int) -> None:
    some, trim = updates(sites, size, seed), 0 if how == "median" else (sites - 1) // 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "BLOCK", 5)
        found = coordinatewise(some[0].tensors, KINDS, some[::-1], how, trim)
    for name in ("w", "one"):
        table = np.sort(np.stack([u.tensors[name] for u in some]).astype(np.float64), axis=0)
        kept = table[trim : sites - trim]
        whole = np.median(kept, axis=0) if how == "median" else kept.sum(axis=0) / len(kept)
        np.testing.assert_allclose(found[name], whole.astype(np.float32), rtol=2e-7)
        assert found[name].dtype == np.float32 and found[name].shape == some[0].tensors[name].shape
    assert found["none"].shape == (0, 2)
    assert found["count"] == sorted(int(u.tensors["count"]) for u in some)[(sites - 1) // 2]


def test_krums_distances_are_those_of_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    some = updates(7, 11, 3)
    monkeypatch.setattr(robust, "BLOCK", 4)
    found = scores(some, ["w", "one"], 1)
    flat = [np.concatenate([u.tensors["w"].ravel(), u.tensors["one"].ravel()]).astype(np.float64) for u in some]
    for i, score in enumerate(found):
        apart = sorted(float(((flat[i] - flat[j]) ** 2).sum()) for j in range(7) if j != i)
        assert score == pytest.approx(sum(apart[:4]), rel=1e-12)


def test_updates_that_lie_in_files_are_the_same(tmp_path: Path) -> None:
    from dataclasses import replace

    from server.scratch import scratch_copy

    some = updates(5, 40, 1)
    filed = [replace(u, tensors=scratch_copy(u.tensors, tmp_path)) for u in some]
    for how, trim in (("median", 0), ("mean", 1)):
        whole = coordinatewise(some[0].tensors, KINDS, some, how, trim)
        found = coordinatewise(some[0].tensors, KINDS, filed, how, trim)
        assert all(found[name].tobytes() == whole[name].tobytes() for name in KINDS)
    assert np.array_equal(scores(some, ["w"], 0), scores(filed, ["w"], 0))


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "clipped_mean"])
def test_weights_in_the_middle_of_the_others_carry_no_false_statistics_with_them(name: str) -> None:
    """One site of five sends the global weights as they were, which no distance tells, and statistics of its own."""
    kinds = {"w": "parameter", "mean": "buffer", "count": "counter"}
    current = {"w": np.zeros(4, np.float32), "mean": np.zeros(3, np.float32), "count": np.array(0)}
    honest = [
        {"w": 0.1 * np.eye(4, dtype=np.float32)[k], "mean": np.full(3, 1.0 + k, np.float32), "count": np.array(7 + k)}
        for k in range(4)
    ]
    false = {"w": current["w"], "mean": np.full(3, 1e6, np.float32), "count": np.array(10**9)}
    some = [SiteUpdate(f"s{k}", tensors, 1) for k, tensors in enumerate([*honest, false])]
    algorithm = build_algorithm(StrategyConfig(name=name, trim=0.2, false_sites=1))
    if name == "krum":
        assert np.argmin(scores(some, ["w"], 1)) == 4  # it is the one that is chosen
    found, _ = algorithm.aggregate(current, kinds, some, {}, 1)
    assert list(found) == list(kinds)
    assert (found["mean"] >= 1).all() and (found["mean"] <= 4).all() and 7 <= found["count"] <= 10
