"""Paired differences and means over sites against a plain loop over the same resamples."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import weighted
from fed_diffmic.training.comparison import difference, mean_over_sites
from fed_diffmic.training.metrics import METRICS, Scored, group_index, weighted_metrics


def site(seed: int, n: int, signal: float, groups: int = 0) -> Scored:
    """A site's predictions: the more ``signal``, the better; labels and groups depend on the seed alone."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    g = rng.integers(0, groups, n) if groups else np.arange(n)
    z = rng.normal(size=(n, 3)) + signal * np.eye(3)[y]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return Scored(p, p.argmax(axis=1), y, g, "multiclass")


def test_difference_equals_a_loop_over_the_same_resamples() -> None:
    first, second = (
        {"a": site(1, 50, 1.5, 20), "b": site(2, 30, 1.0)},
        {"a": site(1, 50, 0.5, 20), "b": site(2, 30, 0.9)},
    )
    found = difference(first, second, bootstrap=200, seed=7)
    per_site = {}
    for name in first:
        rng = numpy_generator(7, "bootstrap", name)
        w = weighted.resample_weights(group_index(first[name].groups), 200, rng)
        diffs = []
        for r in range(200):
            one, two = (weighted_metrics(s[name], w[:, r : r + 1])["auroc_macro"][0] for s in (first, second))
            diffs.append(one - two)
        per_site[name] = np.array(diffs)
        entry = found["sites"][name]["auroc_macro"]
        assert (entry["low"], entry["high"]) == pytest.approx(tuple(np.percentile(diffs, [2.5, 97.5])), abs=1e-12)
    mean = found["mean"]["auroc_macro"]
    expected = np.percentile((per_site["a"] + per_site["b"]) / 2, [2.5, 97.5])
    assert (mean["low"], mean["high"]) == pytest.approx(tuple(expected), abs=1e-12)
    assert mean["value"] == pytest.approx(np.mean([found["sites"][s]["auroc_macro"]["value"] for s in "ab"]))
    assert mean["sites"] == ["a", "b"] and mean["n"] == 80


def test_a_model_does_not_differ_from_itself_and_a_better_one_does() -> None:
    base = {"a": site(1, 120, 0.5), "b": site(2, 120, 0.5)}
    same = difference(base, base, bootstrap=100, seed=0)["mean"]
    for metric in METRICS:
        if metric != "kappa_quadratic":
            assert (same[metric]["value"], same[metric]["low"], same[metric]["high"]) == (0, 0, 0)
    better = difference({"a": site(1, 120, 3.0), "b": site(2, 120, 3.0)}, base, bootstrap=300, seed=0)
    assert better["mean"]["auroc_macro"]["low"] > 0 and better["sites"]["a"]["auroc_macro"]["low"] > 0
    json.dumps(better, allow_nan=False)


def test_mean_over_sites_leaves_out_who_does_not_define_it() -> None:
    whole, lone = site(1, 60, 1.0), site(2, 20, 1.0)
    lone = Scored(lone.probabilities, lone.decided, np.ones(20, int), lone.groups, "multiclass")  # one class only
    empty = Scored(np.empty((0, 3)), np.empty(0, int), np.empty(0, int), np.empty(0), "multiclass")
    found = mean_over_sites({"a": whole, "b": lone, "c": empty}, bootstrap=100, seed=0)
    assert found["auroc_macro"]["sites"] == ["a"] and found["auroc_macro"]["n"] == 60
    assert found["accuracy"]["sites"] == ["a", "b"]
    accuracy = [np.mean(s.decided == s.labels) for s in (whole, lone)]
    assert found["accuracy"]["value"] == pytest.approx(np.mean(accuracy))  # sites alike, not images
    assert found["kappa_quadratic"] == {"value": None, "low": None, "high": None, "n": 0, "sites": []}


def test_site_with_one_group_takes_the_interval_away() -> None:
    lone = site(2, 20, 1.0)
    sites = {
        "a": site(1, 60, 1.0),
        "b": Scored(lone.probabilities, lone.decided, lone.labels, np.zeros(20), "multiclass"),
    }
    found = mean_over_sites(sites, bootstrap=100, seed=0)["accuracy"]
    assert found["value"] is not None and found["low"] is None


def test_unlike_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images at a"):
        difference({"a": site(1, 30, 1.0)}, {"a": site(2, 30, 1.0)}, bootstrap=0, seed=0)
    with pytest.raises(ValueError, match="same sites"):
        difference({"a": site(1, 30, 1.0)}, {"b": site(1, 30, 1.0)}, bootstrap=0, seed=0)
