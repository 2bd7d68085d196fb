"""Each vectorised figure against scikit-learn under sample weights, ties and absent classes included."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fed_diffmic.training import weighted
from fed_diffmic.training.metrics import (
    MACRO_OF,
    METRICS,
    PER_CLASS,
    Scored,
    compute_metrics,
    interval,
    quick,
    replicates,
    weighted_metrics,
)

CLASSES = ("mel", "nv", "bcc", "df")


def draw(seed: int, n: int, c: int, levels: int | None, absent: bool, multilabel: bool) -> tuple[np.ndarray, ...]:
    """Random probabilities (few levels: many ties), labels and whole weights, zeros among them."""
    rng = np.random.default_rng(seed)
    if multilabel:
        p = rng.random((n, c)) if levels is None else rng.integers(0, levels + 1, (n, c)) / levels
        y = (rng.random((n, c)) < 0.35).astype(np.int64)
        y[:, 0] = 0 if absent else y[:, 0]
        decided: np.ndarray = p > 0.5
    else:
        raw = rng.random((n, c)) + 1e-3 if levels is None else rng.integers(1, levels + 1, (n, c)).astype(float)
        p = raw / raw.sum(axis=1, keepdims=True)
        y = rng.integers(1 if absent and c > 1 else 0, c, n)
        decided = p.argmax(axis=1)
    return p, y, decided, rng.integers(0, 4, (n, 3)).astype(np.float64)


def defined_mean(values: list[float]) -> float:
    """Mean of what is not nan, by hand."""
    there = [v for v in values if not math.isnan(v)]
    return sum(there) / len(there) if there else math.nan


def slow_class(truth: np.ndarray, score: np.ndarray, decided: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """One class against the rest by scikit-learn under sample weights."""
    there, rest = w[truth].sum() > 0, w[~truth].sum() > 0
    ranked = there and rest
    recall = f1 = (math.nan, math.nan)
    if there or rest:
        _, recall, f1, _ = sk.precision_recall_fscore_support(
            truth, decided, labels=[False, True], sample_weight=w, zero_division=0
        )
    return {
        "auroc": sk.roc_auc_score(truth, score, sample_weight=w) if ranked else math.nan,
        "auprc": sk.average_precision_score(truth, score, sample_weight=w) if ranked else math.nan,
        "sensitivity": recall[1] if there else math.nan,
        "specificity": recall[0] if rest else math.nan,
        "f1": f1[1] if there else math.nan,
    }


def slow_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error by its definition, one bin after the other."""
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for b in range(15):
        inside = (confidence > edges[b]) & (confidence <= edges[b + 1]) | ((b == 0) & (confidence == 0))
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return total


def slow(p: np.ndarray, y: np.ndarray, decided: np.ndarray, w: np.ndarray, task: str) -> dict[str, object]:
    """Every figure, one resample at a time: the plain twin of :func:`weighted_metrics`."""
    c = p.shape[1]
    multilabel = task == "multilabel"
    truth = y.astype(bool) if multilabel else np.eye(c, dtype=bool)[y]
    chosen = decided if multilabel else np.eye(c, dtype=bool)[decided]
    single = [slow_class(truth[:, k], p[:, k], chosen[:, k], w) for k in range(c)]
    out: dict[str, object] = {key: [entry[key] for entry in single] for key in PER_CLASS}
    recall = [(e["sensitivity"] + e["specificity"]) / 2 if multilabel else e["sensitivity"] for e in single]
    out["balanced_accuracy"] = defined_mean(recall)
    for macro, key in MACRO_OF.items():
        if key != "recall":
            out[macro] = defined_mean([entry[key] for entry in single])
    times = w.astype(int)
    rp, rt, ry, rd = (np.repeat(a, times, axis=0) for a in (p, truth, y, decided))  # weights as copies
    if not len(rp):
        return {**out, **dict.fromkeys(("accuracy", "brier", "ece", "kappa_quadratic"), math.nan)}
    out["accuracy"] = sk.accuracy_score(ry.ravel(), rd.astype(int).ravel())
    out["brier"] = ((rp - rt) ** 2).mean() if multilabel else ((rp - rt) ** 2).sum(axis=1).mean()
    if multilabel:
        out["ece"] = slow_ece(rp.ravel(), ry.ravel())
    else:
        out["ece"] = slow_ece(rp.max(axis=1), (rp.argmax(axis=1) == ry).astype(float))
    out["kappa_quadratic"] = math.nan
    if task == "ordinal" and len(set(ry)) > 1:  # of one class alone: undefined here, 0 in scikit-learn
        out["kappa_quadratic"] = sk.cohen_kappa_score(ry, rd, weights="quadratic", labels=range(c))
    return out


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    c=st.integers(2, 5),
    levels=st.sampled_from([None, 1, 3]),
    absent=st.booleans(),
    task=st.sampled_from(["multiclass", "ordinal", "multilabel"]),
)
def test_weighted_metrics_equal_scikit_learn(
    seed: int, n: int, c: int, levels: int | None, absent: bool, task: str
) -> None:
    p, y, decided, w = draw(seed, n, c, levels, absent, task == "multilabel")
    fast = weighted_metrics(Scored(p, decided, y, np.arange(n), task), w)
    r = seed % w.shape[1]  # one column of weights in each example: scikit-learn takes a second for three
    expected = slow(p, y, decided, w[:, r], task)
    assert set(expected) == set(METRICS) | set(PER_CLASS)
    for name, value in expected.items():
        np.testing.assert_allclose(fast[name][r], value, rtol=0, atol=1e-9, err_msg=name)


def test_macro_metrics_equal_scikit_learn_s_own_macro() -> None:
    p, y, decided, _ = draw(3, 200, 4, None, False, False)
    found = compute_metrics(p, decided, y, np.arange(200), task="multiclass", classes=CLASSES, bootstrap=0, seed=0)
    assert found["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(y, decided))
    assert found["f1_macro"]["value"] == pytest.approx(sk.f1_score(y, decided, average="macro"))
    assert found["auroc_macro"]["value"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    assert found["confusion"] == sk.confusion_matrix(y, decided).tolist()
    assert found["auroc_macro"]["low"] is None and found["bootstrap"] == 0


def test_absent_class_is_absent_not_zero() -> None:
    p, y, decided, _ = draw(4, 80, 4, None, True, False)  # no image of CLASSES[0]
    found = compute_metrics(p, decided, y, np.arange(80), task="multiclass", classes=CLASSES, bootstrap=50, seed=0)
    for metric in ("balanced_accuracy", "f1_macro", "auroc_macro", "auprc_macro"):
        assert found[metric]["classes"] == list(CLASSES[1:])
    block = found["per_class"]["mel"]
    assert block["positives"] == 0 and block["sensitivity"] is None and block["auroc"] is None and block["f1"] is None
    assert block["specificity"] is not None
    present = [found["per_class"][name]["auroc"] for name in CLASSES[1:]]
    assert found["auroc_macro"]["value"] == pytest.approx(np.mean(present))
    assert found["kappa_quadratic"]["value"] is None and found["kappa_quadratic"]["classes"] == []


def test_one_class_only_leaves_ranking_undefined() -> None:
    p, _, decided, _ = draw(5, 30, 4, None, False, False)
    y = np.full(30, 2)
    found = compute_metrics(p, decided, y, np.arange(30), task="ordinal", classes=CLASSES, bootstrap=20, seed=0)
    assert found["auroc_macro"] == {"value": None, "low": None, "high": None, "n": 30, "classes": []}
    assert found["balanced_accuracy"]["value"] == pytest.approx(np.mean(decided == 2))
    assert found["balanced_accuracy"]["classes"] == ["bcc"]


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
@pytest.mark.parametrize("n", [0, 1, 60])
def test_result_is_strict_json_with_all_keys(task: str, n: int) -> None:
    p, y, decided, _ = draw(6, n, 4, 3, True, task == "multilabel")
    found = compute_metrics(p, decided, y, np.arange(n), task=task, classes=CLASSES, bootstrap=30, seed=0)
    back = json.loads(json.dumps(found, allow_nan=False))
    assert back == found
    for metric in METRICS:
        assert set(found[metric]) == {"value", "low", "high", "n", "classes"} and found[metric]["n"] == n
    assert list(found["per_class"]) == list(CLASSES)
    assert (found["confusion"] is None) == (task == "multilabel")
    assert sum(entry["n"] for entry in found["reliability"]) == (n * 4 if task == "multilabel" else n)


def test_bootstrap_draws_whole_groups() -> None:
    groups = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    w = weighted.resample_weights(groups, 500, np.random.default_rng(0))
    assert w.shape == (21, 500)
    for g in range(6):
        assert (w[groups == g] == w[groups == g][0]).all()
    first = np.r_[0, np.flatnonzero(np.diff(groups)) + 1]
    assert (w[first].sum(axis=0) == 6).all()  # as many groups drawn as there are
    assert abs(w[first].mean() - 1) < 1e-12 and abs(w[first].var() - 5 / 6) < 0.05  # binomial(6, 1/6)


def pairs_in_order(score: np.ndarray, truth: np.ndarray) -> float:
    """AUROC by its meaning: the share of pairs of a positive and a negative that stand in order, ties half."""
    difference = score[truth][:, None] - score[~truth][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_interval_is_that_of_a_plain_bootstrap() -> None:
    """The slow twin draws groups in a Python loop, copies their images and counts pairs."""
    p, y, decided, _ = draw(8, 90, 3, 5, False, False)
    groups = np.random.default_rng(1).integers(0, 30, 90)
    scored = Scored(p, decided, y, groups, "multiclass")
    _, fast = replicates(scored, 2000, np.random.default_rng(2))
    rng, names = np.random.default_rng(3), np.unique(groups)
    rows = [np.flatnonzero(groups == g) for g in names]
    slow_values = []
    for _ in range(300):
        take = np.concatenate([rows[k] for k in rng.integers(0, len(names), len(names))])
        slow_values.append(np.mean([pairs_in_order(p[take, k], y[take] == k) for k in range(3)]))
    take = np.concatenate(rows)
    assert np.mean([pairs_in_order(p[take, k], y[take] == k) for k in range(3)]) == pytest.approx(
        sk.roc_auc_score(y, p, multi_class="ovr")
    )
    spread = np.std(slow_values)
    assert np.percentile(fast["auroc_macro"], [2.5, 97.5]) == pytest.approx(
        np.percentile(slow_values, [2.5, 97.5]), abs=0.35 * spread
    )


def test_grouped_images_widen_the_interval() -> None:
    """Ten copies of each image are ten times the images but no more evidence."""
    p, y, decided, _ = draw(9, 60, 3, None, False, False)
    kwargs = {"task": "multiclass", "classes": CLASSES[:3], "bootstrap": 800, "seed": 1}
    one = compute_metrics(p, decided, y, np.arange(60), **kwargs)["accuracy"]
    copies = [np.repeat(a, 10, axis=0) for a in (p, decided, y, np.arange(60))]
    grouped = compute_metrics(*copies, **kwargs)["accuracy"]
    naive = compute_metrics(*copies[:3], np.arange(600), **kwargs)["accuracy"]
    assert (grouped["low"], grouped["high"]) == (one["low"], one["high"])
    assert naive["high"] - naive["low"] < 0.5 * (grouped["high"] - grouped["low"])


def test_same_seed_same_interval_and_group_names_do_not_matter() -> None:
    p, y, decided, _ = draw(10, 50, 3, None, False, False)
    groups = np.random.default_rng(0).integers(0, 20, 50)
    kwargs = {"task": "multiclass", "classes": CLASSES[:3], "bootstrap": 100}
    one = compute_metrics(p, decided, y, groups, seed=5, **kwargs)
    assert one == compute_metrics(p, decided, y, np.array([f"patient {97 * g % 31}" for g in groups]), seed=5, **kwargs)
    assert one["brier"]["low"] != compute_metrics(p, decided, y, groups, seed=6, **kwargs)["brier"]["low"]


def test_chunks_of_resamples_change_nothing_but_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y, decided, _ = draw(11, 40, 3, None, False, False)
    scored = Scored(p, decided, y, np.arange(40), "multiclass")
    monkeypatch.setattr("fed_diffmic.training.metrics._CELLS_AT_ONCE", 40 * 7)
    point, resampled = replicates(scored, 30, np.random.default_rng(0))
    assert all(len(value) == 30 for value in resampled.values())
    assert len(np.unique(resampled["brier"])) == 30
    assert point["brier"].shape == (1,)


def test_one_group_has_no_interval() -> None:
    p, y, decided, _ = draw(12, 20, 3, None, False, False)
    found = compute_metrics(p, decided, y, np.zeros(20), task="multiclass", classes=CLASSES[:3], bootstrap=100, seed=0)
    assert found["accuracy"]["value"] is not None and found["accuracy"]["low"] is None
    assert found["groups"] == 1 and found["bootstrap"] == 0


def test_class_missed_by_most_resamples_has_no_interval() -> None:
    values = np.full(100, np.nan)
    values[:49] = np.linspace(0, 1, 49)
    assert interval(values) == (None, None)
    values[49:60] = 0.5
    low, high = interval(values)
    assert low is not None and high is not None and low < high


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_quick_equals_metrics(task: str) -> None:
    p, y, decided, _ = draw(13, 70, 4, 3, True, task == "multilabel")
    found = compute_metrics(p, decided, y, np.arange(70), task=task, classes=CLASSES, bootstrap=0, seed=0)
    fast = quick(p, y, task)
    assert fast == {name: found[name]["value"] for name in ("auroc_macro", "balanced_accuracy", "accuracy")}
    assert quick(p[:0], y[:0], task) == dict.fromkeys(("auroc_macro", "balanced_accuracy", "accuracy"))


def test_float32_labels_of_the_manifest_are_accepted() -> None:
    p, y, decided, _ = draw(14, 30, 4, None, False, True)
    assert quick(p.astype(np.float32), y.astype(np.float32), "multilabel")["accuracy"] == pytest.approx(
        np.mean(decided == y)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.full((4, 2), np.nan)}, "finite"),
        ({"probabilities": np.full((4, 2), 1.5)}, "within"),
        ({"probabilities": np.zeros(4)}, "expected .N, C."),
        ({"labels": np.array([0, 1, 2, 0])}, "labels holds a class that does not exist"),
        ({"labels": np.array([0, 1])}, "labels has shape"),
        ({"decided": np.array([0, 1, -1, 0])}, "decided holds"),
        ({"groups": np.arange(3)}, "groups has shape"),
        ({"task": "regression"}, "is not one of"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "probabilities": np.full((4, 2), 0.5),
        "decided": np.zeros(4, int),
        "labels": np.zeros(4, int),
        "groups": np.arange(4),
        "task": "multiclass",
    }
    Scored(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Scored(**{**good, **change})  # type: ignore[arg-type]


def test_number_of_names_must_fit() -> None:
    with pytest.raises(ValueError, match="2 class names for 3"):
        compute_metrics(np.ones((1, 3)) / 3, [0], [0], [0], task="multiclass", classes=("a", "b"), bootstrap=0, seed=0)


def test_interval_is_the_middle_95_percent() -> None:
    assert interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))
    assert interval(np.empty(0)) == (None, None)
