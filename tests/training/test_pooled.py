"""Operating points from counts that sites add: those of the pooled scores, never better, and nothing of few images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import SitePolicy
from fed_diffmic.training import pooled
from fed_diffmic.training.few import OWNERS
from fed_diffmic.training.matrix import AT_SENSITIVITY, AT_SPECIFICITY, operating_points
from fed_diffmic.training.metrics import Scored
from tests.site_rules import OPEN

CLASSES = ("a", "b", "c")


def scored(seed: int, count: int = 120, sharp: float = 1.5) -> Scored:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    logits = rng.normal(size=(count, 3)) + sharp * np.eye(3)[labels]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Scored(p, p.argmax(axis=1), labels, np.arange(count).astype(str), "multiclass")


def cell(metrics: dict[str, float]) -> dict[str, Any]:
    return pooled.with_points({"n": 1}, metrics, CLASSES)


def exact(sites: list[Scored], c: int, cells: bool) -> tuple[float, float]:
    scores = np.concatenate([one.probabilities[:, c] for one in sites])
    scores = pooled.cells_of(scores).astype(float) if cells else scores
    positive = np.concatenate([one.labels for one in sites]) == c
    found = operating_points(scores, positive, np.ones((len(scores), 1)))[:, 0]
    return float(found[0]), float(found[1])


def test_the_sum_of_sites_is_what_their_scores_give_to_a_cell() -> None:
    sites = [scored(seed) for seed in (1, 2, 3)]
    told = {f"s{n}": cell(pooled.site_points(one, 3)) for n, one in enumerate(sites)}
    found = pooled.pooled_points(told, CLASSES)
    for c, name in enumerate(CLASSES):
        mine = found[name][AT_SPECIFICITY]["value"], found[name][AT_SENSITIVITY]["value"]
        assert mine == exact(sites, c, cells=True)
        assert mine == pytest.approx(exact(sites, c, cells=False), abs=0.06)
        assert found[name]["n"] == 360 and found[name]["sites"] == ["s0", "s1", "s2"]


@given(st.integers(0, 10**6), st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_what_leaves_is_of_enough_images_and_promises_nothing_that_is_not_there(seed: int, least: int) -> None:
    one = scored(seed, 90)
    raw = pooled.site_points(one, 3)
    told = pooled.told(raw, least, 3, [])
    assert all(value >= least for value in told.values())
    assert not any(name.startswith(OWNERS) for name in told)
    found, whole = (pooled.pooled_points({"s": cell(m)}, CLASSES) for m in (told, pooled.told(raw, 1, 0, [])))
    for name, points in found.items():
        assert points["positives"] == whole[name]["positives"] and points["n"] == 90
        for key in (AT_SPECIFICITY, AT_SENSITIVITY):
            assert points[key]["value"] <= whole[name][key]["value"] + 1e-12


def test_a_class_whose_count_is_kept_back_is_told_nowhere() -> None:
    """Its images could be counted in its cells, and those of all others by subtraction from the whole."""
    one = scored(5, 60)
    one.labels[:] = np.where(np.arange(60) < 4, 2, np.arange(60) % 2)
    raw = pooled.site_points(one, 3)
    metrics = {"test/n": 60.0, "test/groups": 60.0, "test/complete": 1.0}
    metrics |= {f"test/positives/{c}": float((one.labels == c).sum()) for c in range(3)}
    policy = SitePolicy(replace(OPEN, min_count=5))
    sent = policy.release(Payload("assess.reply", {}, {}, metrics | raw), {})
    assert isinstance(sent, Payload)
    kept_back = {name.split("/")[-1] for name in metrics if name.startswith("test/positives/")}
    kept_back -= {name.split("/")[-1] for name in sent.metrics if name.startswith("test/positives/")}
    told = {name.split("/")[1] for name in sent.metrics if name.startswith(pooled.PREFIX)}
    assert "2" in kept_back and len(kept_back) == 2 and told and not told & kept_back
    assert not any(name.startswith(OWNERS) for name in sent.metrics)


def test_many_images_of_one_patient_are_no_class_to_tell() -> None:
    one = scored(6)
    one.groups[one.labels == 1] = "the same"
    told = pooled.told(pooled.site_points(one, 3), 5, 3, [])
    assert {name.split("/")[1] for name in told} == {"0", "2"}


def test_counts_that_are_none_are_left_out() -> None:
    good = {"points/0/0/3": 20.0, "points/0/1/9": 12.0}
    bad = {"points/1/0/3": 5.0, "points/7/0/1": 9.0, "points/7/1/1": 9.0, "points/0/2/1": 9.0, "points/0/0/99999": 1.0}
    bad |= {"points/2/0/x": 1.0, "points/2/1/¼": 1.0, "points/2/0/-1": 4.0}
    assert pooled.points_from(good | bad, CLASSES) == {"a": {"0": [[3, 20.0]], "1": [[9, 12.0]]}}
    assert pooled.pooled_points({"s": cell(good | bad), "t": {"n": 5}}, CLASSES)["a"][AT_SPECIFICITY]["value"] == 1.0
