"""Metrics of the yardstick: by hand, against other implementations, and intervals that hold what they promise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import uncertainty
from fed_diffmic.training.calibration import class_prior
from fed_diffmic.training.metrics import Scored, weighted_metrics
from simulations.experiments import head_report
from simulations.experiments.head_metrics import AUROC, alone, aurc, better, calibrated, gap, judge
from simulations.experiments.head_report import Method


def cohort(skill=1.5, n=400, seed=0, noise=0, classes=3):
    """Scores of images whose labels and groups depend on ``seed`` alone; the scores' noise on ``noise`` too."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=[0.6, 0.3, 0.1][:classes])
    shared = rng.normal(size=(n, classes))
    own = np.random.default_rng([seed, noise]).normal(size=(n, classes))
    scores = skill * np.eye(classes)[labels] + 0.7 * shared + 0.7 * own
    prior = class_prior(np.bincount(labels, minlength=classes), n, "multiclass")
    groups = np.arange(n) // 2
    return {"scores": scores, "labels": labels, "groups": groups, "prior": prior, "keys": np.arange(n)}


def test_aurc_by_hand():
    """Of four answers the most and third most sure are right: risks 0, 1/2, 1/3, 2/4."""
    wrong = np.array([False, True, False, True])
    assert aurc(np.array([0.1, 0.2, 0.3, 0.4]), wrong)[0] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert aurc(np.array([0.4, 0.3, 0.2, 0.1]), wrong)[0] == pytest.approx((1 + 1 / 2 + 2 / 3 + 2 / 4) / 4)
    assert aurc(np.zeros(4), wrong)[0] == pytest.approx(0.5)  # says nothing: the error rate


def naive_aurc(unsure, wrong):
    order = sorted(range(len(unsure)), key=lambda i: unsure[i])
    risks = [np.mean([wrong[i] for i in order[: k + 1]]) for k in range(len(order))]
    return float(np.mean(risks))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=5))
def test_aurc_is_the_mean_over_all_orders_of_what_is_tied(rows):
    """Against a loop over every order in which tied images can be taken."""
    from itertools import permutations

    unsure, wrong = (np.array(column) for column in zip(*rows, strict=True))
    orders = [naive_aurc(unsure[list(p)], wrong[list(p)]) for p in permutations(range(len(rows)))]
    assert aurc(unsure.astype(float), wrong)[0] == pytest.approx(np.mean(orders))


def test_aurc_is_near_the_binned_one_and_weights_are_repeats():
    rng = np.random.default_rng(1)
    unsure, wrong = rng.random(4000), rng.random(4000) < 0.3
    unsure = unsure + 0.5 * wrong
    unsure /= unsure.max()
    edges = np.minimum((unsure * uncertainty.CELLS).astype(int), uncertainty.CELLS)
    table = np.stack([np.bincount(edges[rows], minlength=uncertainty.CELLS + 1) for rows in (~wrong, wrong)])
    assert aurc(unsure, wrong)[0] == pytest.approx(uncertainty.aurc(table), abs=0.005)
    times = rng.integers(0, 3, 4000)
    repeated = aurc(np.repeat(unsure, times), np.repeat(wrong, times))[0]
    assert aurc(unsure, wrong, times[:, None].astype(float))[0] == pytest.approx(repeated, abs=1e-3)


def test_the_other_metrics_agree_with_the_programs_own():
    data = cohort()
    found = judge(data, data, "multiclass", "balanced", resamples=5)
    p, fitted = calibrated(data, data, "multiclass")
    decided = (p / np.asarray(fitted.prior)).argmax(axis=1)
    theirs = weighted_metrics(Scored(p, decided, data["labels"], data["groups"], "multiclass"), np.ones((len(p), 1)))
    for name in ("auroc_macro", "balanced_accuracy", "brier", "ece"):
        assert found.value[name] == pytest.approx(theirs[name][0])
    by_hand = -np.log(p[np.arange(len(p)), data["labels"]]).mean()
    assert found.value["nll"] == pytest.approx(by_hand) == pytest.approx(fitted.nll, abs=1e-5)
    assert found.value["error"] == pytest.approx((p.argmax(axis=1) != data["labels"]).mean())


def test_calibration_is_fitted_on_validation_alone():
    val, test = cohort(seed=1), cohort(seed=2)
    test["scores"] = 50 * test["scores"]
    _, fitted = calibrated(val, test, "multiclass")
    changed = {**test, "labels": np.roll(test["labels"], 1)}
    assert calibrated(val, changed, "multiclass")[1] == fitted == calibrated(val, val, "multiclass")[1]


def test_the_second_network_alone_is_the_first_score():
    data = cohort()
    both = {**data, "scores": np.stack([data["scores"], -data["scores"]], axis=1)}
    assert np.array_equal(alone(both)["scores"], data["scores"])
    _, fitted = calibrated(both, both, "multiclass")
    assert fitted.blend == 0.0


def judged(skill, noise, resamples=100, seed=0):
    data = cohort(skill, seed=seed, noise=noise)
    return judge(data, data, "multiclass", "balanced", resamples=resamples)


@pytest.mark.parametrize("metric", [AUROC, "balanced_accuracy", "nll", "brier", "ece", "aurc/entropy"])
def test_a_method_is_level_with_itself_and_a_better_one_is_better(metric):
    strong, weak = [judged(2.5, n) for n in (1, 2)], [judged(0.3, n) for n in (1, 2)]
    same = gap(strong, strong, metric)
    assert same.mean == 0.0 and better(metric, same) == "not shown"
    if metric != "ece":  # both are calibrated
        assert better(metric, gap(strong, weak, metric)) == "better"
        assert better(metric, gap(weak, strong, metric)) == "worse"


def test_methods_are_compared_on_the_same_resamples():
    """Two methods that err on the same images have a narrow interval: it would be ten times as wide unpaired."""
    one, other = judged(1.5, 1), judged(1.5, 1)
    assert np.array_equal(one.resampled["nll"], other.resampled["nll"])
    data = cohort(1.5, noise=1)
    near = judge(
        {**data, "scores": data["scores"] + 1e-3},
        {**data, "scores": 1.001 * data["scores"]},
        "multiclass",
        "balanced",
        100,
    )
    found = gap([one], [near], "nll")
    assert found.high - found.low < 0.1 * 4 * one.resampled["nll"].std()


def test_the_interval_covers_no_difference_as_often_as_it_says():
    """Two methods of equal skill on fresh patients: 95 % intervals exclude zero in about 5 % of cohorts."""
    missed = sum(
        better("nll", gap([judged(1.0, 1, 100, seed)], [judged(1.0, 2, 100, seed)], "nll")) != "not shown"
        for seed in range(25)
    )
    assert missed <= 6  # P(more) < 0.1 % at 5 %


def test_a_metric_that_one_of_them_lacks_is_not_compared():
    rng = numpy_generator(0, "x")
    data = {**cohort(), "doubt/spread": rng.random(400)}
    with_spread = judge(data, data, "multiclass", "balanced", 50)
    assert "aurc/spread" in with_spread.value
    assert gap([with_spread], [judged(1.5, 1, 50)], "aurc/spread") is None
    assert gap([with_spread], [judged(1.5, 1, 50)], "aurc/spread", "aurc/entropy") is not None


def test_several_labels():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.3).astype(np.float32)
    scores = 2.0 * labels + rng.normal(size=(200, 3)) - 1
    data = {"scores": scores, "labels": labels, "groups": np.arange(200), "prior": labels.mean(axis=0)}
    found = judge(data, data, "multilabel", "balanced", 20)
    p, fitted = calibrated(data, data, "multilabel")
    theirs = weighted_metrics(
        Scored(p, p > np.asarray(fitted.prior), labels, data["groups"], "multilabel"), np.ones((200, 1))
    )
    for name in ("auroc_macro", "balanced_accuracy", "brier", "ece"):
        assert found.value[name] == pytest.approx(theirs[name][0])
    assert found.value["nll"] == pytest.approx(fitted.nll, abs=1e-5)


def test_a_class_with_one_test_image_has_no_variance_and_takes_none_from_the_others():
    """Its influence is infinite: the gap of the mean was from minus to plus infinity, and a bad head *level*."""
    labels = np.r_[np.repeat([0, 1], 60), 2]

    def tensors(skill, seed):
        scores = np.random.default_rng(seed).normal(size=(121, 3)) + skill * np.eye(3)[labels]
        return {"scores": scores, "labels": labels, "groups": np.arange(121), "prior": np.full(3, 1 / 3)}

    good, bad = (
        judge(tensors(2, 0), tensors(skill, seed), "multiclass", "probability", 50)
        for skill, seed in ((4, 1), (0.2, 2))
    )
    found = gap([bad], [good], AUROC)
    assert np.isfinite(found.low) and better(AUROC, found) == "worse"
    endless = replace(found, low=-np.inf, high=np.inf)
    methods = [Method("head", "", ("1",), (judged,), {}, np.arange(121)) for judged in (bad, good)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            head_report, "paired", lambda a, b, metric: endless if metric == AUROC else replace(found, low=-2, high=-1)
        )
        won, said = head_report.earns(*methods)
    assert not won and "better in NLL" in said  # what is not known is not level
