"""Every algorithm where the right answer is known: against numbers worked out by hand, and where it must end."""

from dataclasses import replace

import numpy as np
import pytest

from fed_diffmic.algorithms import SiteUpdate, algorithm_names, build_algorithm
from fed_diffmic.algorithms.fednova import accumulation
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from fed_diffmic.errors import RoundError
from server.strategy import FlowerAlgorithm
from tests.algorithms.quadratics import KINDS, Federation, Site


def unlike(**rest):
    """Steep at one site, flat at the other: where FedAvg ends elsewhere than the optimum."""
    return [Site("a", a=4.0, b=1.0, **rest), Site("b", a=1.0, b=-1.0, **rest)]


def strategy(name, **rest):
    return StrategyConfig(name=name, weighting="equal", **rest)


def one(name, w, n=1, **rest):
    return SiteUpdate(name, {"weight": np.array([[w]], np.float64)}, n, **rest)


def after(name, updates, *, rounds=1, start=0.0, sites=None, stage=None, **options):
    algorithm = build_algorithm(strategy(name, **options), stage)
    current = {"weight": np.array([[start]])}
    state = algorithm.initial_state(current, KINDS)
    for index in range(rounds):
        current, state = algorithm.aggregate(current, KINDS, updates, state, index + 1, sites)
    return float(current["weight"][0, 0]), state


# ---- numbers worked out by hand ---------------------------------------------------------------
def test_fedavgm_two_rounds_by_hand():
    """d = w - 2. Round 1: v = -2, w = 0 + 0.5 * 2 = 1. Round 2: v = 0.5 * -2 - 1 = -2, w = 1 + 1 = 2."""
    w, state = after("fedavgm", [one("a", 1.0), one("b", 3.0)], rounds=2, server_lr=0.5, server_momentum=0.5)
    assert w == pytest.approx(2.0) and state["v/weight"][0, 0] == pytest.approx(-2.0)


def test_fedadam_and_fedyogi_one_round_by_hand():
    """d = 2, m = (1 - 0.9) * 2 = 0.2; v = 0.01 * 4 + 0.99 * tau^2 (Adam), tau^2 + 0.01 * 4 (Yogi: v < d^2)."""
    tau = 0.1
    updates = [one("a", 1.0), one("b", 3.0)]
    w, _ = after("fedadam", updates, server_lr=1.0, server_tau=tau)
    assert w == pytest.approx(0.2 / (np.sqrt(0.04 + 0.99 * tau**2) + tau))
    w, _ = after("fedyogi", updates, server_lr=1.0, server_tau=tau)
    assert w == pytest.approx(0.2 / (np.sqrt(0.04 + tau**2) + tau))


def test_yogi_shrinks_more_slowly_than_adam():
    """From v = 1 and d = 0.1: Adam's v is 0.99 + 0.01 * 0.01, Yogi's 1 - 0.01 * 0.01."""
    for name, expected in (("fedadam", 0.9901), ("fedyogi", 0.9999)):
        algorithm = build_algorithm(strategy(name))
        assert algorithm.second_moment(np.array(1.0), np.array(0.1)) == pytest.approx(expected)


def test_fednova_divides_by_the_steps_by_hand():
    """tau = 1 and 4: d = 1/1 and 8/4; tau_eff = 2.5; w = 2.5 * (0.5 * 1 + 0.5 * 2) = 3.75, where FedAvg has 4.5."""
    updates = [one("a", 1.0, steps=1.0), one("b", 8.0, steps=4.0)]
    assert after("fednova", updates)[0] == pytest.approx(3.75)
    assert after("fedavg", updates)[0] == pytest.approx(4.5)


def test_accumulation_counts_what_momentum_adds():
    """Steps of gradient 1 with momentum 0.5: 1, then 1.5, then 1.75: 4.25 in all."""
    assert accumulation(3, 0.5) == pytest.approx(4.25)
    assert accumulation(3, 0.0) == 3
    stage = StageConfig(optimizer="sgd", momentum=0.5)
    w, _ = after("fednova", [one("a", 4.25, steps=3.0), one("b", 1.0, steps=1.0)], stage=stage)
    assert w == pytest.approx(0.5 * 4.25 + 0.5 * 1.0)  # both moved by a gradient of one


def test_qfedavg_one_round_by_hand():
    """L = 2, F = 4 and 1: delta = -2, -4; D = -8, -4; h = 4 + 8 = 12 and 16 + 2 = 18; w = 12 / 30."""
    updates = [one("a", 1.0, initial_loss=4.0), one("b", 2.0, initial_loss=1.0)]
    assert after("qfedavg", updates, q=1.0, lipschitz_lr=0.5)[0] == pytest.approx(12 / 30)
    assert after("qfedavg", updates, q=0.0, lipschitz_lr=0.5)[0] == pytest.approx(1.5)  # the plain mean


def test_feddyn_one_round_by_hand():
    """alpha = 0.5, two of four sites: h = -0.5 * 2/4 * 2 = -0.5; w = 2 + 0.5 / 0.5 = 3."""
    w, state = after("feddyn", [one("a", 1.0), one("b", 3.0)], sites=4, feddyn_alpha=0.5)
    assert w == pytest.approx(3.0) and state["h/weight"][0, 0] == pytest.approx(-0.5)


def test_scaffold_first_round_by_hand():
    """One step of rate 0.1 from 0: gradients -4 and 1 become c_k; c is their mean; w moves by -0.1 * -1.5."""
    federation = Federation(strategy("scaffold"), unlike(steps=1))
    assert federation.rounds(1) == pytest.approx(0.15)
    assert [s.state["algorithm/own.weight"][0, 0] for s in federation.sites] == pytest.approx([-4.0, 1.0])
    assert federation.state["c/weight"][0, 0] == pytest.approx(-1.5)


def test_scaffold_moves_its_control_by_the_share_that_took_part():
    federation = Federation(strategy("scaffold"), unlike(steps=1))
    federation.rounds(1, absent=lambda index, site: site == "b")
    assert federation.state["c/weight"][0, 0] == pytest.approx(0.5 * -4.0)


@pytest.mark.parametrize(
    ("name", "expected"), [("median", 2.0), ("krum", 2.0), ("trimmed_mean", 2.0), ("fedavg", 202.0)]
)
def test_one_false_site_of_five(name, expected):
    updates = [one(s, w) for s, w in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 2.0), ("e", 1002.0))]
    assert after(name, updates, trim=0.2, false_sites=1)[0] == pytest.approx(expected, abs=1 / 3 + 1e-9)


def test_krum_scores_by_hand():
    """At 0, 1, 3, 10, 11 with f = 1 the two nearest count: 1 + 9, 1 + 4, 4 + 9, 1 + 49, 1 + 64."""
    from fed_diffmic.algorithms.krum import scores

    updates = [one(s, w) for s, w in zip("abcde", (0.0, 1.0, 3.0, 10.0, 11.0), strict=True)]
    assert scores(updates, ["weight"], 1).tolist() == [10.0, 5.0, 13.0, 50.0, 65.0]
    assert after("krum", updates, false_sites=1, krum_keep=2)[0] == pytest.approx(0.5)


# ---- where they must end ----------------------------------------------------------------------
def test_fedavg_ends_elsewhere_than_the_optimum_and_these_do_not():
    """The optimum is (4 - 1) / 5 = 0.6. FedAvg's fixed point with ten local steps is far from it."""
    federation = Federation(strategy("fedavg"), unlike())
    assert federation.optimum == pytest.approx(0.6)
    shrink = [1 - (1 - 0.1 * a) ** 10 for a in (4.0, 1.0)]
    fixed = (shrink[0] * 1.0 + shrink[1] * -1.0) / sum(shrink)
    assert federation.rounds(20) == pytest.approx(fixed) and abs(fixed - 0.6) > 0.3
    for name, options in (("scaffold", {}), ("feddyn", {"feddyn_alpha": 1.0})):
        assert Federation(strategy(name, **options), unlike()).rounds(60) == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_with_weights_by_images_the_weighted_optimum_is_reached(name):
    sites = [Site("a", 4.0, 1.0, n=1), Site("b", 1.0, -1.0, n=3)]
    federation = Federation(StrategyConfig(name=name, feddyn_alpha=1.0), sites)
    assert federation.optimum == pytest.approx((4 - 3) / 7)
    assert federation.rounds(80) == pytest.approx(federation.optimum, abs=1e-6)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_with_one_of_three_sites_away_in_turn_the_optimum_is_reached(name):
    sites = [Site("a", 4.0, 1.0), Site("b", 1.0, -1.0), Site("c", 2.0, 3.0)]
    federation = Federation(strategy(name, feddyn_alpha=1.0), sites)
    away = federation.rounds(90, absent=lambda index, site: site == "abc"[index % 3])
    assert away == pytest.approx(federation.optimum, abs=0.02)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_a_site_that_was_away_for_some_rounds_moves_the_end_nowhere(name):
    """Of unlike sizes: what a small one adds while it is alone is its own share of all, not everything."""
    sites = [Site("a", 4.0, 1.0, n=100), Site("b", 1.0, -1.0, n=10), Site("c", 2.0, 3.0, n=40)]
    federation = Federation(StrategyConfig(name=name, feddyn_alpha=1.0), sites)
    federation.rounds(6, absent=lambda index, site: index > 2 and site != "b")
    assert federation.rounds(60) == pytest.approx(federation.optimum, abs=1e-3)


def test_fednova_is_not_biased_by_unequal_steps():
    """Small steps, same curvature: FedAvg leans to the site with more steps, FedNova ends in the middle."""
    sites = [Site("a", 1.0, 1.0, steps=1), Site("b", 1.0, -1.0, steps=20)]
    nova = Federation(strategy("fednova"), sites, lr=5e-3).rounds(120)
    mean = Federation(strategy("fedavg"), sites, lr=5e-3).rounds(120)
    assert abs(nova) < 0.05 and mean < -0.85


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_server_optimizers_reach_the_optimum_with_single_steps(name):
    options = {"fedavgm": {}, "fedadam": {"server_lr": 0.01}, "fedyogi": {"server_lr": 0.01}}[name]
    federation = Federation(strategy(name, **options), unlike(steps=1), lr=0.05)
    assert federation.rounds(200) == pytest.approx(0.6, abs=0.005)


def test_qfedavg_serves_the_worst_site_better():
    def worst(name, **options):
        federation = Federation(strategy(name, **options), unlike(steps=1), start=0.5)
        w = federation.rounds(60)
        return max(0.5 * s.a * (w - s.b) ** 2 for s in federation.sites)

    fair, plain = worst("qfedavg", q=3.0, lipschitz_lr=0.1), worst("fedavg")
    assert fair < 0.9 * plain


def test_ditto_personal_models_lie_between_global_and_own_as_lambda_says():
    """At w_t = w*: argmin a/2 (v - b)^2 + l/2 (v - w)^2 = (a b + l w) / (a + l)."""
    mean = Federation(strategy("fedavg"), unlike(steps=20), lr=0.01).rounds(40)
    for weight in (0.0, 1.0, 100.0):
        federation = Federation(strategy("ditto", ditto_lambda=weight), unlike(steps=20), lr=0.01)
        w = federation.rounds(40)
        assert w == pytest.approx(mean)
        for site in federation.sites:
            own = float(federation.algorithm.overlay(site.state, training=False)["weight"][0, 0])
            assert own == pytest.approx((site.a * site.b + weight * w) / (site.a + weight), abs=1e-3)
        assert federation.algorithm.overlay(site.state, training=True) == {}


# ---- what holds for all -----------------------------------------------------------------------
# fedsgd takes noised sums and no updates: tests/algorithms/test_fedsgd.py, tests/server/test_noisy.py
@pytest.mark.parametrize("name", sorted(set(algorithm_names()) - {"fedsgd"}))
def test_order_of_arrival_changes_no_bit_and_one_site_alone_is_served(name):
    rng = np.random.default_rng(0)
    tensors = [{"w": rng.normal(size=20).astype(np.float32), "n": np.array(i, np.int64)} for i in range(7)]
    algorithm = build_algorithm(StrategyConfig(name=name, trim=0.2))
    kinds = {"w": "parameter", "n": "counter"}
    current = {"w": np.zeros(20, np.float32), "n": np.array(0, np.int64)}
    state = algorithm.initial_state(current, kinds)
    algorithm_tensors = algorithm.broadcast(current, state)
    updates = [SiteUpdate(f"s{i}", t, 3 + i, algorithm_tensors, 2.0 + i, 0.5 + i) for i, t in enumerate(tensors)]
    first, kept = algorithm.aggregate(current, kinds, updates, state, 1, 7)
    second, again = algorithm.aggregate(current, kinds, updates[::-1], state, 1, 7)
    assert list(first) == ["w", "n"] and first["w"].dtype == np.float32 and first["n"].dtype == np.int64
    assert all(first[n].tobytes() == second[n].tobytes() for n in first)
    assert kept.keys() == again.keys() and all(kept[n].tobytes() == again[n].tobytes() for n in kept)
    assert all(isinstance(v, np.ndarray) for v in kept.values())  # what a checkpoint can hold


@pytest.mark.parametrize("name", sorted(set(algorithm_names()) - {"fedsgd"}))
def test_a_resumed_state_goes_on_as_if_nothing_had_happened(name, tmp_path):
    from fed_diffmic.files import load_tensors, save_tensors

    options = {"trim": 0.4, "feddyn_alpha": 1.0, "server_lr": 0.1, "weighting": "equal"}
    sites = [Site(s, a, b) for s, a, b in (("a", 4.0, 1.0), ("b", 1.0, -1.0), ("c", 2.0, 0.5))]
    whole = Federation(StrategyConfig(name=name, **options), [replace(s) for s in sites])
    parted = Federation(StrategyConfig(name=name, **options), [replace(s) for s in sites])
    whole.rounds(6)
    parted.rounds(3)
    save_tensors(tmp_path / "state", {**parted.state, "none": np.zeros(1)})
    parted.state = {n: v for n, v in load_tensors(tmp_path / "state").items() if n != "none"}
    for site in parted.sites:
        save_tensors(tmp_path / site.name, {**site.state, "none": np.zeros(1)})
        site.state = {n: v for n, v in load_tensors(tmp_path / site.name).items() if n != "none"}
    parted.rounds(3)
    assert parted.w == whole.w


@pytest.mark.parametrize(
    ("ours", "options", "flower", "theirs"),
    [
        (
            "fedavgm",
            {"server_lr": 0.7, "server_momentum": 0.8},
            "FedAvgM",
            {"server_learning_rate": 0.7, "server_momentum": 0.8},
        ),
        ("median", {}, "FedMedian", {}),
        ("trimmed_mean", {"trim": 0.2}, "FedTrimmedAvg", {"beta": 0.2}),
        ("krum", {"false_sites": 1, "krum_keep": 1}, "Krum", {"num_malicious_nodes": 1}),
        ("krum", {"false_sites": 1, "krum_keep": 3}, "MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
    ],
)
def test_equal_to_flowers_own_over_three_rounds(ours, options, flower, theirs):
    rng = np.random.default_rng(3)
    mine = build_algorithm(strategy(ours, **options))
    config = StrategyConfig(
        name="flower", class_path=f"flwr.serverapp.strategy.{flower}", options=theirs, weighting="equal"
    )
    other = FlowerAlgorithm(config)
    current = again = {"weight": rng.normal(size=(4, 3)).astype(np.float32)}
    state, kept = mine.initial_state(current, KINDS), {}
    for index in (1, 2, 3):
        updates = [
            SiteUpdate(s, {"weight": (current["weight"] + rng.normal(size=(4, 3))).astype(np.float32)}, 1)
            for s in "abcde"
        ]
        current, state = mine.aggregate(current, KINDS, updates, state, index, 5)
        again, kept = other.aggregate(again, KINDS, updates, kept, index)
        np.testing.assert_allclose(current["weight"], again["weight"], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_done_is_said():
    three = [one("a", 1.0), one("b", 2.0), one("c", 3.0)]
    with pytest.raises(RoundError, match="needs the figure steps, which did not come from a, b, c"):
        after("fednova", three)
    with pytest.raises(RoundError, match="initial_loss"):
        after("qfedavg", three)
    with pytest.raises(RoundError, match="needs 5 updates; 3 came"):
        after("krum", three, false_sites=1)
    with pytest.raises(RoundError, match="needs 5 updates"):
        after("krum", three, false_sites=0, krum_keep=5)
    with pytest.raises(RoundError, match="withstands nothing"):
        after("trimmed_mean", three, trim=0.2)
