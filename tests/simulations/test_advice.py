"""What a run advises a site: its own patients decide which model, the others' patients are told beside it."""

import numpy as np
import pytest

from fed_diffmic.training.metrics import Scored
from simulations.advice import advice
from simulations.metrics import MethodResult, Row
from tests.toy import toy_spec


def scored(site, skill):
    rng = np.random.default_rng(ord(site))
    labels = rng.choice(3, 150, p=[0.5, 0.3, 0.2])
    score = np.exp(skill * np.eye(3)[labels] + rng.normal(size=(150, 3)))
    p = score / score.sum(axis=1, keepdims=True)
    return Scored(p, p.argmax(axis=1), labels, np.arange(150), "multiclass")


def case(federated, local):
    """Skill of the federation at each site, and of each site's own model at each site."""
    spec = toy_spec()
    rows = {"federated": Row(spec, {site: scored(site, skill) for site, skill in federated.items()})}
    rows |= {f"local/{o}": Row(spec, {s: scored(s, k) for s, k in skills.items()}) for o, skills in local.items()}
    results = {
        "federated": MethodResult({}, rows["federated"].parts),
        "local": MethodResult({}, {site: rows[f"local/{site}"].parts[site] for site in federated}),
        "pooled": MethodResult({}, rows["federated"].parts),
    }
    return advice(results, rows, bootstrap=200, seed=0)


def test_own_patients_decide_and_others_are_told():
    found = case(
        {"a": 1.0, "b": 1.0, "c": 1.0},
        {"a": {"a": 3.0, "b": 0.0, "c": 0.0}, "b": {"a": 0.2, "b": 0.2, "c": 0.2}, "c": {"a": 1.0, "b": 1.0, "c": 1.0}},
    )
    assert {site: said["take"]["model"] for site, said in found.items()} == {
        "a": "local", "b": "federated", "c": "federated",
    }  # fmt: skip
    assert found["a"]["take"]["steps"][0]["low"] > 0 and found["b"]["take"]["steps"][0]["high"] < 0
    assert found["c"]["take"]["steps"][0]["value"] == 0.0
    away = {site: said["elsewhere"]["local"] for site, said in found.items()}
    assert away["a"]["low"] > 0, "its own patients, where it is better, are not among the others"
    assert away["a"]["sites"] == ["b", "c"] and away["c"]["value"] == pytest.approx(0.0)


def test_with_nothing_to_choose_between_nothing_is_advised():
    spec = toy_spec()
    rows = {"federated": Row(spec, {"a": scored("a", 1.0)})}
    only = {"federated": MethodResult({}, rows["federated"].parts)}
    assert advice(only, rows, bootstrap=20, seed=0) == {}
    both = {**only, "local": only["federated"]}
    assert "elsewhere" not in advice(both, rows, bootstrap=20, seed=0)["a"]
