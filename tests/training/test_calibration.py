"""The federated fit against the pooled one, and probabilities that mean what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.training.calibration import (
    Calibration,
    choose,
    class_prior,
    decide,
    grid,
    nll_sums,
    prior_taken,
    probabilities,
    uncalibrated,
)

TASKS = ["multiclass", "ordinal", "multilabel"]


def example(seed: int, n: int, task: str, c: int = 4, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that are ``factor`` times the true logits, labels drawn from those logits, and a prior."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, c)) - np.arange(c) * 0.7
    if task == "multilabel":
        y: np.ndarray = (rng.random((n, c)) < 1 / (1 + np.exp(-z))).astype(np.float32)
        counts = y.sum(axis=0)
    else:
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=c - 1)
        counts = np.bincount(y, minlength=c)
    return factor * z, y, class_prior(counts, n, task)


def slow_nll(scores: np.ndarray, y: np.ndarray, prior: np.ndarray, task: str, s: float, w: float) -> float:
    """The negative log-likelihood by the formula of the module, one image and one class at a time."""
    total = 0.0
    for row, label in zip(scores, y, strict=True):
        if task == "multilabel":
            for k, value in enumerate(row):
                z = s * value + w * np.log(prior[k] / (1 - prior[k]))
                total += np.logaddexp(0, -z if label[k] else z)
        else:
            terms = [s * value + w * np.log(prior[k]) for k, value in enumerate(row)]
            total += np.logaddexp.reduce(terms) - terms[label]
    return total


@pytest.mark.parametrize("task", TASKS)
def test_sums_equal_the_formula(task: str) -> None:
    scores, y, prior = example(0, 12, task)
    sums, points = nll_sums(scores, y, prior, task), grid(task)
    assert sums.shape == points.shape
    for i in (0, 40, len(points.scales) - 1):
        for j, w in enumerate(points.prior_weights):
            slow = slow_nll(scores, y, prior, task, points.scales[i], w)
            assert sums[i, j] == pytest.approx(slow, abs=12 * 2**-20)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    task=st.sampled_from(TASKS),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    f=st.sampled_from([0.05, 1, 12]),
)
def test_federated_fit_equals_the_pooled_fit_exactly(seed: int, task: str, cuts: list[int], f: float) -> None:
    scores, y, prior = example(seed, 60, task, factor=f)
    sites = np.split(np.random.default_rng(seed).permutation(60), sorted(cuts))  # empty sites among them
    parts = [nll_sums(scores[rows], y[rows], prior, task) for rows in sites]
    pooled = nll_sums(scores, y, prior, task)
    assert np.array_equal(sum(parts), pooled) and np.array_equal(sum(reversed(parts)), pooled)
    assert choose(sum(parts), 60, prior, task) == choose(pooled, 60, prior, task)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("factor", [0.1, 1.0, 8.0])
def test_distorted_logits_get_their_scale_back(task: str, factor: float) -> None:
    scores, y, prior = example(1, 4000, task, factor=factor)
    fitted = choose(nll_sums(scores, y, prior, task), 4000, prior, task)
    assert fitted.scale * factor == pytest.approx(1, rel=0.2)
    assert fitted.prior_weight <= 0.25 and not fitted.at_edge
    p = probabilities(scores, fitted)
    truth = y if task == "multilabel" else np.eye(4)[y]
    for low in (0.1, 0.3, 0.5, 0.7):  # of what is said at 30 %, about 30 % are
        inside = (p > low) & (p < low + 0.2)
        assert truth[inside].mean() == pytest.approx(p[inside].mean(), abs=0.05)


def test_prior_taken_out_by_a_balanced_loss_comes_back() -> None:
    scores, y, prior = example(2, 4000, "multiclass")
    fitted = choose(nll_sums(scores - np.log(prior), y, prior, "multiclass"), 4000, prior, "multiclass")
    assert fitted.prior_weight == 1.0 and fitted.scale == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("task", TASKS)
def test_logarithms_of_probabilities_that_miss_the_prior_and_are_too_bold_are_mended(task: str) -> None:
    """What the diffusion stage's scores are: p to some power, times a power of the prior, up to a factor."""
    scores, y, prior = example(3, 4000, task)
    offset = np.log(prior / (1 - prior)) if task == "multilabel" else np.log(prior)
    bold = 2 * (scores - 0.5 * offset)
    fitted = choose(nll_sums(bold, y, prior, task), 4000, prior, task)
    assert fitted.scale == pytest.approx(0.5, rel=0.2) and fitted.prior_weight in (0.25, 0.5, 0.75)
    odds = np.exp(scores)
    wanted = odds / (1 + odds) if task == "multilabel" else odds / odds.sum(axis=1, keepdims=True)
    assert np.abs(probabilities(bold, fitted) - wanted).mean() < 0.03


@pytest.mark.parametrize("task", TASKS)
def test_useless_and_perfect_scores_are_reported_at_the_edge(task: str) -> None:
    scores, y, prior = example(5, 300, task)
    noise = np.random.default_rng(0).permutation(scores) * 1e3
    assert choose(nll_sums(noise, y, prior, task), 300, prior, task).at_edge
    perfect = 0.4 * (2 * y - 1) if task == "multilabel" else 0.4 * np.eye(4)[y]
    found = choose(nll_sums(perfect, y, prior, task), 300, prior, task)
    assert found.at_edge and found.scale > 32


@pytest.mark.parametrize("task", TASKS)
def test_probabilities_are_probabilities(task: str) -> None:
    scores, y, prior = example(6, 50, task, factor=1e4)
    for calibration in (uncalibrated(prior, task), choose(nll_sums(scores, y, prior, task), 50, prior, task)):
        p = probabilities(scores, calibration)
        assert p.shape == (50, 4) and np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1
        if task != "multilabel":
            np.testing.assert_allclose(p.sum(axis=1), 1)


def test_without_validation_images_nothing_changes() -> None:
    prior = np.array([0.25, 0.75])
    found = choose(np.zeros(grid("multiclass").shape), 0, prior, "multiclass")
    assert found == uncalibrated(prior, "multiclass") and found.n == 0 and found.nll is None


@pytest.mark.parametrize("task", TASKS)
def test_without_validation_images_what_the_loss_took_out_is_given_back(task: str) -> None:
    """So the balanced decision is that of the scores themselves, not one that divides by the prior twice."""
    scores, _, prior = example(7, 200, task)
    found = choose(np.zeros(grid(task).shape), 0, prior, task, taken=1.0)
    p = probabilities(scores, found)
    if task == "multilabel":
        odds = np.exp(scores) * prior / (1 - prior)
        np.testing.assert_allclose(p, odds / (1 + odds), rtol=1e-9)
        np.testing.assert_array_equal(decide(p, found, "balanced"), scores > 0)
    else:
        np.testing.assert_allclose(p, np.exp(scores) * prior / (np.exp(scores) * prior).sum(axis=1, keepdims=True))
        np.testing.assert_array_equal(decide(p, found, "balanced"), scores.argmax(axis=1))


@pytest.mark.parametrize(
    ("loss", "stage", "taken"),
    [
        ("balanced", "guidance", 1.0),
        ("balanced", "plain", 1.0),
        ("balanced", "diffusion", 0.7),
        ("cross_entropy", "guidance", 0.0),
    ],
)
def test_how_much_of_the_prior_a_loss_takes_out(loss: str, stage: str, taken: float) -> None:
    assert prior_taken(StageConfig(loss=loss, balance=0.7), stage) == taken


def test_class_prior_is_smoothed() -> None:
    assert class_prior(np.array([0, 3]), 3, "multiclass") == pytest.approx([1 / 5, 4 / 5])
    assert class_prior(np.array([0, 3]), 3, "multilabel") == pytest.approx([1 / 5, 4 / 5])
    assert class_prior(np.array([8, 8]), 8, "multilabel") == pytest.approx([0.9, 0.9])
    assert class_prior(np.array([900, -3]), 8, "multilabel") == pytest.approx([0.9, 0.1])  # noised at private sites


def test_decisions() -> None:
    calibration = Calibration("multiclass", 1.0, 0.0, (0.8, 0.15, 0.05))
    p = np.array([[0.7, 0.2, 0.1], [0.9, 0.06, 0.04]])
    assert decide(p, calibration, "probability").tolist() == [0, 0]
    assert decide(p, calibration, "balanced").tolist() == [2, 0]
    labels = Calibration("multilabel", 1.0, 0.0, (0.8, 0.15, 0.05))
    assert decide(p, labels, "probability").tolist() == [[True, False, False], [True, False, False]]
    assert decide(p, labels, "balanced").tolist() == [[False, True, True], [True, False, False]]
    with pytest.raises(ValueError, match="not one of"):
        decide(p, calibration, "coin")


@pytest.mark.parametrize("task", TASKS)
def test_json_round_trip(task: str) -> None:
    scores, y, prior = example(7, 40, task)
    for fitted in (choose(nll_sums(scores, y, prior, task), 40, prior, task), uncalibrated(prior, task)):
        assert Calibration.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False))) == fitted


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"scale": "1"},
        {"scale": True},
        {"scale": float("nan")},
        {"prior_weight": 1.5},
        {"prior": []},
        {"prior": "0.5"},
        {"prior": [0.5, 1.0]},
        {"prior": [0.5, None]},
        {"task": "regression"},
        {"task": 3},
        {"n": -1},
        {"n": 2.5},
        {"at_edge": 0},
        {"nll": "low"},
        {"extra": 1},
    ],
)
def test_json_that_is_not_a_calibration_is_refused(change: dict[str, object]) -> None:
    good = uncalibrated(np.array([0.5, 0.5]), "multiclass").to_json()
    with pytest.raises(ModelFileError):
        Calibration.from_json({**good, **change})
    with pytest.raises(ModelFileError, match="exactly the keys"):
        Calibration.from_json({key: value for key, value in good.items() if key != "prior"})


def test_what_does_not_fit_is_refused() -> None:
    scores, y, prior = example(8, 10, "multiclass")
    with pytest.raises(ValueError, match="diverged"):
        nll_sums(np.full_like(scores, np.inf), y, prior, "multiclass")
    with pytest.raises(ValueError, match="expected .B, 4."):
        nll_sums(scores[:, :3], y, prior, "multiclass")
    with pytest.raises(ValueError, match="do not fit"):
        nll_sums(scores, y[:5], prior, "multiclass")
    shape = grid("multiclass").shape
    for bad in (np.zeros((2, 2)), np.full(shape, np.nan), np.full(shape, -1.0)):
        with pytest.raises(ValueError, match="calibration sums"):
            choose(bad, 10, prior, "multiclass")
    with pytest.raises(ValueError, match="not one of"):
        grid("regression")


@pytest.mark.parametrize("task", TASKS)
def test_two_scores_sums_equal_the_formula_for_each_share(task: str) -> None:
    first, y, prior = example(0, 12, task)
    second = example(1, 12, task)[0]
    sums, points = nll_sums(np.stack([first, second], axis=1), y, prior, task), grid(task, blended=True)
    assert sums.shape == points.shape == (97, 25)
    for j, (blend, weight) in enumerate(points.columns):
        mixed = (1 - blend) * first + blend * second
        slow = slow_nll(mixed, y, prior, task, points.scales[40], weight)
        assert sums[40, j] == pytest.approx(slow, abs=12 * 2**-20)
    assert np.array_equal(sums[:, :5], nll_sums(first, y, prior, task))
    assert np.array_equal(sums[:, 20:], nll_sums(second, y, prior, task))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("noise", "low", "high"), [((0.0, 50.0), 0.0, 0.0), ((50.0, 0.0), 1.0, 1.0), ((2, 2), 0.25, 0.75)]
)
def test_the_fit_finds_which_of_two_scores_says_more(
    task: str, noise: tuple[float, float], low: float, high: float
) -> None:
    """Scores that are the true logits and independent noise: none in one of them, or as much in both."""
    z, y, prior = example(3, 3000, task)
    rng = np.random.default_rng(7)
    scores = np.stack([z + size * rng.normal(size=z.shape) for size in noise], axis=1)
    fitted = choose(nll_sums(scores, y, prior, task), len(y), prior, task, blended=True)
    assert low <= fitted.blend <= high
    alone = [choose(nll_sums(scores[:, k], y, prior, task), len(y), prior, task).nll for k in (0, 1)]
    assert fitted.nll is not None and fitted.nll <= min(value for value in alone if value is not None)
    mixed = (1 - fitted.blend) * scores[:, 0] + fitted.blend * scores[:, 1]
    assert np.array_equal(probabilities(scores, fitted), probabilities(mixed, fitted))


def test_a_calibration_of_a_version_without_shares_is_read() -> None:
    whole = Calibration("multiclass", 0.5, 0.25, (0.2, 0.8), 3, 0.1).to_json()
    assert Calibration.from_json(whole) == Calibration("multiclass", 0.5, 0.25, (0.2, 0.8), 3, 0.1)
    before = {key: value for key, value in whole.items() if key != "blend"}
    assert Calibration.from_json(before) == Calibration.from_json(whole)
    for wrong in (1.5, -0.1, True, "0"):
        with pytest.raises(ModelFileError):
            Calibration.from_json({**whole, "blend": wrong})
