"""Metrics of methods at sites: whose predictions, of which split, minus whose; asked of predictions made by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fed_diffmic.training.metrics import Scored
from simulations import metrics
from simulations.metrics import (
    MethodResult,
    cross_site,
    differences,
    everywhere,
    join,
    method_result,
    prediction_tensors,
)
from tests.toy import CLASSES, toy_site, toy_spec

SITES = {name: toy_site(name, seed, count=48) for seed, name in enumerate(("a", "b"), start=1)}


def scored(examples, right):
    """Predictions of which so many, the first ones, are right, with certainty; the others name the next class."""
    labels = examples.labels
    decided = np.where(np.arange(len(labels)) < right, labels, (labels + 1) % 3)
    return Scored(np.eye(3)[decided] * 0.8 + 0.2 / 3, decided, labels, examples.groups, "multiclass")


class Fixed:
    """A model that is right on so many of the first images of each split."""

    sureness = None

    def __init__(self, **right):
        self.spec, self.right, self.asked = toy_spec(), right, []

    def predict(self, examples):
        split = next(s for d in SITES.values() for s in self.right if getattr(d, s) is examples)
        self.asked.append((next(n for n, d in SITES.items() if getattr(d, split) is examples), split))
        return scored(examples, self.right[split])


def accuracy(block):
    return block["accuracy"]["value"]


def test_each_site_is_judged_by_its_own_model_on_its_own_images_split_by_split():
    models = {"a": Fixed(val=12, test=6), "b": Fixed(val=3, test=9)}
    result = method_result(models, SITES, bootstrap=20)
    assert models["a"].asked == [("a", "val"), ("a", "test")] and models["b"].asked == [("b", "val"), ("b", "test")]
    shown = {
        (name, split): accuracy(result.metrics["sites"][name][split]) for name in SITES for split in ("val", "test")
    }
    assert shown == {("a", "val"): 1.0, ("a", "test"): 0.5, ("b", "val"): 0.25, ("b", "test"): 0.75}
    assert accuracy(result.metrics["global"]["val"]) == 15 / 24
    assert accuracy(result.metrics["global"]["test"]) == 15 / 24
    assert accuracy(result.metrics["mean"]["val"]) == pytest.approx((1.0 + 0.25) / 2)
    assert accuracy(result.metrics["mean"]["test"]) == pytest.approx((0.5 + 0.75) / 2)
    assert result.test["a"].groups.tolist() == SITES["a"].test.groups.tolist()
    for block in (*result.metrics["sites"].values(), result.metrics["global"], result.metrics["mean"]):
        assert block["val"]["accuracy"]["low"] is None and block["test"]["accuracy"]["low"] is not None


def test_a_mean_weighs_sites_alike_and_the_union_images(monkeypatch):
    large = {"a": SITES["a"], "b": toy_site("b", 2, count=96)}
    monkeypatch.setitem(SITES, "b", large["b"])
    result = method_result({"a": Fixed(val=12, test=12), "b": Fixed(val=0, test=0)}, large, bootstrap=0)
    assert accuracy(result.metrics["mean"]["test"]) == 0.5
    assert accuracy(result.metrics["global"]["test"]) == pytest.approx(12 / 36)


def result_of(**right):
    test = {name: scored(SITES[name].test, n) for name, n in right.items()}
    return MethodResult({}, test)


def test_a_difference_is_the_federation_minus_the_other():
    """Better than alone is a number above zero, and the interval is on the same side."""
    found = differences(result_of(a=12, b=12), {"local": result_of(a=3, b=6), "pooled": result_of(a=12, b=12)}, 200, 0)
    local = found["local"]
    assert accuracy(local["sites"]["a"]) == 0.75 and accuracy(local["sites"]["b"]) == 0.5
    assert accuracy(local["mean"]) == pytest.approx(0.625) and local["mean"]["accuracy"]["low"] > 0
    assert accuracy(found["pooled"]["mean"]) == 0.0
    worse = differences(result_of(a=3, b=6), {"local": result_of(a=12, b=12)}, 0, 0)["local"]
    assert accuracy(worse["mean"]) == pytest.approx(-0.625)


def test_the_union_keeps_every_column_in_the_order_of_the_sites():
    alike = [scored(SITES[name].test, right) for name, right in (("a", 3), ("b", 7))]
    parts = [replace(part, groups=np.char.add(name, part.groups)) for name, part in zip("ab", alike, strict=True)]
    parts[1] = replace(parts[1], labels=parts[1].labels[::-1])
    whole = join(parts)
    for column in ("probabilities", "decided", "labels", "groups"):
        both = [getattr(part, column) for part in parts]
        assert not np.array_equal(*both), "alike, the test could not tell"
        np.testing.assert_array_equal(getattr(whole, column), np.concatenate(both))
    assert whole.task == "multiclass"


def test_a_shared_model_is_one_row_and_models_of_sites_a_row_each_and_nothing_is_predicted_twice():
    shared, own = Fixed(test=9), {"a": Fixed(test=12), "b": Fixed(test=3)}
    methods = {"federated": {"a": shared, "b": shared}, "local": own}
    results = {"federated": result_of(a=9, b=9), "local": result_of(a=12, b=3)}
    matrix = cross_site(everywhere(methods, results, SITES), bootstrap=0)
    assert list(matrix) == ["federated", "local/a", "local/b"]
    assert shared.asked == [] and own["a"].asked == [("b", "test")] and own["b"].asked == [("a", "test")]
    shown = {
        (model, site): round(cell["balanced_accuracy"]["value"], 2)
        for model, row in matrix.items()
        for site, cell in row.items()
    }
    assert shown == {
        ("federated", "a"): 0.75, ("federated", "b"): 0.75, ("federated", "all"): 0.75,
        ("local/a", "a"): 1.0, ("local/a", "b"): 1.0, ("local/a", "all"): 1.0,
        ("local/b", "a"): 0.25, ("local/b", "b"): 0.25, ("local/b", "all"): 0.25,
    }  # fmt: skip
    assert {cell["n"] for row in matrix.values() for cell in row.values()} == {12, 24}


def test_with_many_sites_models_of_their_own_are_left_out_and_the_shared_one_stays(monkeypatch):
    monkeypatch.setattr(metrics, "MOST_MODELS", 1)
    shared, own = Fixed(test=9), {"a": Fixed(test=12), "b": Fixed(test=3)}
    results = {"federated": result_of(a=9, b=9), "local": result_of(a=12, b=3)}
    matrix = cross_site(
        everywhere({"local": own, "federated": {"a": shared, "b": shared}}, results, SITES), bootstrap=0
    )
    assert list(matrix) == ["federated"]


def test_one_site_has_no_column_of_all():
    one = {"a": SITES["a"]}
    matrix = cross_site(
        everywhere({"federated": {"a": Fixed(test=9)}}, {"federated": result_of(a=9)}, one), bootstrap=0
    )
    assert list(matrix["federated"]) == ["a"]


def test_predictions_are_kept_by_method_and_site_and_name_nobody():
    groups = np.array(["patient 9", "patient 1", "patient 9", "patient 5"])
    part = Scored(np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0]), np.array([0, 1, 1, 0]), groups, "multiclass")
    other = SimpleNamespace(
        test={"a": Scored(np.eye(3)[[1, 1, 1, 1]], np.ones(4, int), part.labels, groups, "multiclass")}
    )
    held = SimpleNamespace(test=SimpleNamespace(keys=np.array([7, 8, 9, 10], np.uint64)))
    found = prediction_tensors({"federated": SimpleNamespace(test={"a": part}), "plain/local": other}, {"a": held})
    assert set(found) == {
        "federated|a|probabilities", "federated|a|decided", "plain/local|a|probabilities", "plain/local|a|decided",
        "a|labels", "a|groups", "a|keys",
    }  # fmt: skip
    assert found["a|keys"].tolist() == [7, 8, 9, 10]
    assert found["a|groups"].tolist() == [2, 0, 2, 1] and found["a|labels"].tolist() == [0, 1, 1, 0]
    assert found["federated|a|decided"].tolist() == [0, 1, 2, 0]
    assert found["plain/local|a|probabilities"].tolist() == [[0, 1, 0]] * 4
    assert len(CLASSES) == 3
