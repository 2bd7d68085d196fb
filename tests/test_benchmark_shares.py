"""The comparison of rules for a mixture's share: each rule by hand, and the table that is printed."""

import numpy as np
import pytest

from benchmarks import shares


def losses_of(own, shared):
    """Of images to whose class the two models give these probabilities."""
    w = shares.GRID[:, None]
    return -np.log(w * np.asarray(own) + (1 - w) * np.asarray(shared))


def test_each_rule_by_hand():
    rng = np.random.default_rng(0)
    sure = losses_of([0.9] * 20, [0.1] * 20)
    for name, rule in shares.RULES.items():
        found = rule(sure, rng)
        assert found == 0.5 if name == "one half, always" else found > 0.8, (name, found)
    turns = losses_of([0.9, 0.1] * 20, [0.1, 0.9] * 20)
    assert shares.least(turns, rng) == pytest.approx(0.5)
    assert shares.posterior(turns, rng) == pytest.approx(0.5)
    assert shares.crossfit(turns, rng) == pytest.approx(0.5, abs=0.05)
    own = losses_of([0.5] * 9 + [0.6], [0.5] * 10)
    assert shares.better(own, rng) == 1.0 and shares.least(own, rng) == 1.0
    assert shares.crossfit(own, rng) == 1.0 and shares.one_error(losses_of([0.6, 0.45] * 5, [0.5] * 10), rng) == 0.5
    assert 0.5 < shares.posterior(own, rng) < 0.55


def test_the_table_has_every_rule_and_no_rule_beats_the_best_share(monkeypatch):
    monkeypatch.setattr(shares, "OTHERS", 200)
    monkeypatch.setattr(shares, "IMAGES", (12,))
    rng = np.random.default_rng(1)
    assert min(shares.excess(12, 0.4, 3, rng).values()) >= 0
    text = "\n".join(shares.lines(2, 0))
    assert all(f"| {name} |" in text for name in shares.RULES)
    assert "over 10 settings, 2 draws of each; seed 0" in text and text == "\n".join(shares.lines(2, 0))


def test_an_own_model_that_was_chosen_looks_better_than_it_is(monkeypatch):
    """What the comparison is about: the rule of the least loss pays for it, and more than the posterior mean does."""
    monkeypatch.setattr(shares, "OTHERS", 1000)
    rng = np.random.default_rng(2)
    cost = {tried: [shares.excess(33, 1.2, tried, rng) for _ in range(30)] for tried in shares.TRIED}
    mean = {
        tried: {name: np.mean([one[name] for one in each]) for name in shares.RULES} for tried, each in cost.items()
    }
    old, new = (next(name for name in shares.RULES if word in name) for word in ("until 30", "since"))
    assert mean[20][old] > mean[1][old] and mean[20][old] > mean[20][new]
