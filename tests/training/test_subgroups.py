"""Metrics of subgroups: of their own images, and none that few images would tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.subgroups import MOST, enough, flat, subgroup_metrics, subgroups_from


def scored(n=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    p = np.clip(rng.normal(0.5 + 0.15 * (2 * labels - 1), 0.25), 0.01, 0.99)
    found = np.stack([1 - p, p], axis=1)
    return Scored(found, found.argmax(axis=1), labels, np.arange(n), "multiclass")


def texts(counts, column="sex"):
    return np.array([f"{column}={value}" for value, n in counts.items() for _ in range(n)])


def test_each_value_has_the_metrics_of_its_own_images():
    all_ = scored()
    found = subgroup_metrics(all_, texts({"f": 120, "m": 80}), ("no", "yes"), bootstrap=0, seed=0)
    cell = found["sex"]["f"]
    wanted = roc_auc_score(all_.labels[:120], all_.probabilities[:120, 1])
    assert (cell["n"], cell["groups"]) == (120, 120) and cell["auroc_macro"]["value"] == pytest.approx(wanted)
    own = [(all_.decided[:120] == c)[all_.labels[:120] == c].mean() for c in (0, 1)]
    assert cell["balanced_accuracy"]["value"] == pytest.approx(np.mean(own)) and cell["coverage"]["value"] is None
    assert found["sex"]["m"]["n"] == 80


def test_few_images_or_patients_have_no_metrics():
    found = subgroup_metrics(scored(), texts({"f": 120, "m": 77, "x": 3}), ("no", "yes"), bootstrap=0, seed=0)
    assert found["sex"]["x"] == {"n": None} and (found["sex"]["f"]["n"], found["sex"]["m"]["n"]) == (120, 77)
    all_ = scored()
    one = Scored(
        all_.probabilities, all_.decided, all_.labels, np.where(np.arange(200) < 120, 0, np.arange(200)), "multiclass"
    )
    found = subgroup_metrics(one, texts({"f": 120, "m": 80}), ("no", "yes"), bootstrap=0, seed=0)
    assert found["sex"]["f"] == {"n": None}, "120 images of one patient"
    two = subgroup_metrics(scored(), np.array(["sex=f|age=20 to 39"] * 200), ("no", "yes"), bootstrap=0, seed=0)
    assert two["sex"]["f"]["n"] == two["age"]["20 to 39"]["n"] == 200


def test_they_cross_as_flat_numbers_and_only_of_enough():
    found = subgroup_metrics(scored(), texts({"f": 120, "m": 70, "x": 10}), ("no", "yes"), bootstrap=50, seed=0)
    numbers = flat(found)
    assert subgroups_from({**numbers, "test/n": 200.0}) == found
    left = subgroups_from(enough({**numbers, "test/n": 200.0}, 20, 5))
    assert list(left["sex"]) == ["f"], "x is few, and m with the total would tell it"
    assert enough(numbers, 20, 150) == {}
    many = {f"subgroup/c/{k}/n": 20.0 for k in range(3 * MOST)} | {"subgroup/c/\x1b[2J/n": 20.0}
    kept = subgroups_from(many)["c"]
    assert len(kept) == MOST and all(name.isprintable() for name in kept)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), st.integers(1, 20))
def test_what_is_hidden_is_never_one_small_count(counts, least):
    metrics = {f"subgroup/c/{name}/n": float(n) for name, n in counts.items()}
    metrics |= {f"subgroup/c/{name}/groups": float(n) for name, n in counts.items()}
    left = enough(metrics, least, 0)
    shown = {name for name in counts if f"subgroup/c/{name}/n" in left}
    hidden = set(counts) - shown
    assert all(counts[name] >= least for name in shown)
    assert not hidden or not shown or (len(hidden) > 1 and sum(counts[name] for name in hidden) >= least)


def test_a_subgroup_hidden_for_its_patients_cannot_be_had_by_subtraction():
    sizes = {"m": (40, 20), "f": (15, 3), "x": (25, 12)}
    metrics = {"test/n": 80.0, "test/groups": 35.0}
    for name, (images, patients) in sizes.items():
        metrics |= {f"subgroup/sex/{name}/n": float(images), f"subgroup/sex/{name}/groups": float(patients)}
    assert list(subgroups_from(enough(metrics, 10, 5))["sex"]) == ["m"], "f and the next smallest"
    two = {name: value for name, value in metrics.items() if "/x/" not in name}
    assert subgroups_from(enough(two, 10, 5)) == {}, "the total less m would be f"
    both = metrics | {"subgroup/sex/m/groups": 3.0}  # two hidden that may be the same three patients
    assert subgroups_from(enough(both, 10, 5)) == {}
    assert enough(metrics, 10, 3) == metrics


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1),
    st.integers(1, 20),
    st.integers(1, 10),
)
def test_what_is_hidden_is_never_of_few_patients(sizes, images, patients):
    sizes = {name: (n, min(n, own)) for name, (n, own) in sizes.items()}
    metrics = {f"subgroup/c/{name}/n": float(n) for name, (n, _) in sizes.items()}
    metrics |= {f"subgroup/c/{name}/groups": float(own) for name, (_, own) in sizes.items()}
    shown = set(subgroups_from(enough(metrics, images, patients)).get("c", {}))
    hidden = [sizes[name] for name in sizes if name not in shown]
    assert all(n >= images and own >= patients for n, own in (sizes[name] for name in shown))
    if hidden and shown:
        assert len(hidden) > 1 and sum(n for n, _ in hidden) >= images
        assert max(own for _, own in hidden) >= patients
