"""The sum that updates are folded into: no order changes a bit, it is the mean in float64, and nothing is cut off."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.algorithms import SiteUpdate, algorithm_names, build_algorithm
from fed_diffmic.algorithms.base import SUMS, algorithm_class, weighted_average
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from fed_diffmic.exchange.masking.fixed_point import FixedPoint, FixedPointError
from fed_diffmic.exchange.masking.update import UpdateForm
from server import fold as fold_module
from server.fold import FORMS, MOST_SITES, Fold, folded

KINDS = {"w": "parameter", "mean": "buffer", "steps": "counter"}
BY_SUMS = [name for name in algorithm_names() if algorithm_class(name).needs == SUMS]


def start(size: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size)
    w = (rng.standard_normal((size, 2)) * scale).astype(np.float32)
    return {"w": w, "mean": np.ones(3, np.float32), "steps": np.array(4, np.int64)}


def updates(size: int, weights: list[int], scale: float, seed: int = 0) -> list[SiteUpdate]:
    rng, found = np.random.default_rng(seed), []
    for number, weight in enumerate(weights):
        moved = start(size)["w"] + (rng.standard_normal((size, 2)) * scale).astype(np.float32)
        statistics = (1 + rng.standard_normal(3) * scale).astype(np.float32)
        tensors = {"w": moved, "mean": statistics, "steps": np.array(5 + number % 3, np.int64)}
        found.append(SiteUpdate(f"s{number:02d}", tensors, weight, steps=float(1 + number)))
    return found


def fold(some: list[SiteUpdate], size: int, heaviest: float) -> Fold:
    made = Fold(start(size), KINDS, heaviest)
    for update in some:
        made.add(update, float(update.num_examples))
    return made


def bits(made: Fold) -> list[bytes]:
    sums = made.sums()
    return [sums.mean(name).tobytes() for name in KINDS] + [sums.change(name).tobytes() for name in ("w", "mean")]


ROUNDS = st.tuples(
    st.integers(1, 40),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=9),
    st.floats(-9, 11).map(lambda exponent: 10.0**exponent),
    st.integers(0, 99),
)


@given(ROUNDS, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_no_order_changes_a_bit(drawn: tuple[int, list[int], float, int], random: object) -> None:
    size, weights, scale, seed = drawn
    some = updates(size, weights, scale, seed)
    first = fold(some, size, max(weights))
    random.shuffle(some)  # type: ignore[attr-defined]
    assert bits(fold(some, size, max(weights))) == bits(first)


@given(ROUNDS, st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_it_is_the_mean_in_float64_rounded_to_the_tensors_type(
    drawn: tuple[int, list[int], float, int], heavier: float
) -> None:
    """Beyond one rounding of float32 it is off by no more than its docstring says, in quanta of the form it took."""
    size, weights, scale, seed = drawn
    some, heaviest = updates(size, weights, scale, seed), max(weights) * heavier
    made = fold(some, size, heaviest)
    total = sum(weights)
    for name in ("w", "mean"):
        before = start(size)[name].astype(np.float64)
        changes = [u.tensors[name].astype(np.float64) - before for u in some]
        exact = np.array(sum(w * c for w, c in zip(weights, changes, strict=True))) / total
        quantum = made.coarse.get(name, FORMS[0].quantum)
        off = len(weights) * heaviest / total * quantum / 2
        rounding = 1e-14 * max(np.abs(c).max() for c in changes)
        assert np.abs(made.sums().change(name) - exact).max() <= off + rounding
        mean = made.sums().mean(name)
        half = np.spacing(np.abs(mean)).astype(np.float64) / 2
        assert mean.dtype == np.float32
        assert (np.abs(mean - (before + exact)) <= half * 1.0001 + off + 2 * rounding).all()
    assert made.sums().mean("steps") == max(u.tensors["steps"] for u in some)


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=9), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_at_the_size_of_training_it_rounds_as_the_mean_in_float64_does(weights: list[int], seed: int) -> None:
    """Changes below 1: the same float32, but where the mean lies in the middle between two of them."""
    some = updates(200, weights, 0.05, seed)
    made = fold(some, 200, max(weights)).sums().mean("w").astype(np.float64)
    shares = {u.site: u.num_examples / sum(weights) for u in some}
    twin = weighted_average(some, {"w": "parameter"}, shares)["w"].astype(np.float64)
    exact = sum(shares[u.site] * u.tensors["w"].astype(np.float64) for u in some)
    other = made != twin
    middle = (made[other] + twin[other]) / 2
    assert np.abs(middle - exact[other]).max(initial=0.0) < 1e-13 and np.allclose(made, twin, rtol=2e-7, atol=1e-12)


def test_equal_updates_come_out_as_they_are() -> None:
    one = updates(50, [7], 0.1)[0]
    some = [SiteUpdate(f"s{k}", one.tensors, 7) for k in range(5)]
    assert fold(some, 50, 900.0).sums().mean("w").tobytes() == one.tensors["w"].tobytes()


@pytest.mark.parametrize("name", BY_SUMS)
def test_every_algorithm_makes_the_same_of_the_integers_as_of_the_floats(name: str) -> None:
    """Its server half on a fold against its slow twin on the updates, with a cap that one site runs into."""
    algorithm = build_algorithm(StrategyConfig(name=name), StageConfig(), 0.4)
    current = [start(30), start(30)]
    states = [algorithm.initial_state(start(30), KINDS) for _ in range(2)]
    for index in (1, 2):
        sent = [algorithm.broadcast(c, s) for c, s in zip(current, states, strict=True)]
        some = [
            SiteUpdate(
                u.site, u.tensors, u.num_examples, {n: v + np.float32(0.01) for n, v in sent[1].items()}, u.steps
            )
            for u in updates(30, [10, 20, 900, 5], 0.05, index)
        ]
        sums = folded(algorithm, {**current[0], **sent[0]}, KINDS, some, 500.0)
        current[0], states[0] = algorithm.from_sums(current[0], KINDS, sums, states[0], index, 6)
        current[1], states[1] = algorithm.aggregate(current[1], KINDS, some, states[1], index, 6)
        for n in KINDS:
            np.testing.assert_allclose(current[0][n], current[1][n], rtol=3e-7, atol=1e-9)
            assert current[0][n].dtype == current[1][n].dtype and current[0][n].shape == current[1][n].shape
        assert states[0].keys() == states[1].keys()
        for n in states[0]:
            np.testing.assert_allclose(states[0][n], states[1][n], rtol=1e-7, atol=1e-9)


def test_sums_are_for_those_that_say_so() -> None:
    assert set(algorithm_names()) - set(BY_SUMS) == {
        "clipped_mean",
        "fedsgd",
        "krum",
        "median",
        "qfedavg",
        "trimmed_mean",
    }
    base = algorithm_class("fedavg")

    class Own(base):  # type: ignore[misc, valid-type]
        def aggregate(self, current, kinds, updates, state, round_index, sites=None):  # type: ignore[no-untyped-def]
            return current, state

    class Weighs(base):  # type: ignore[misc, valid-type]
        def site_weights(self, updates):  # type: ignore[no-untyped-def]
            return {}

    class SaysSo(Weighs):
        needs = SUMS

    assert [cls.needs for cls in (Own, Weighs, SaysSo)] == ["updates", "updates", "sums"]


def test_what_comes_one_by_one_equals_what_is_there_at_once() -> None:
    some = updates(20, [3, 50, 4, 11], 0.3)
    algorithm = build_algorithm(StrategyConfig())
    at_once = folded(algorithm, start(20), KINDS, some, 77.0)
    assert at_once.change("w").tobytes() == fold(some[::-1], 20, 77.0).sums().change("w").tobytes()


def test_plain_and_masked_sums_are_the_same_integers() -> None:
    """Of one format and one heaviest weight: the words, and every float that is made of them."""
    some, reference = updates(40, [20, 50, 5], 0.02), start(40)
    shape = UpdateForm(reference, 6, 9.0, 50)
    words = [shape.encode(u.tensors, u.num_examples) for u in some]
    total = np.sum(words, axis=0, dtype="<u8")
    masked, weight = shape.mean(total, len(some))
    made = Fold(reference, KINDS, 50.0, forms=[shape.numbers])
    for update in some:
        made.add(update, float(update.num_examples))
    assert weight == 75
    for name in ("w", "mean"):
        plain = made.sums().mean(name)
        assert plain.tobytes() == masked[name].tobytes() and plain.shape == masked[name].shape


def test_a_change_beyond_a_form_is_summed_in_a_coarser_one_and_named() -> None:
    """As 2^20 does not fit the first two forms, the site's tensor is in the third; the others' stay fine."""
    some = updates(5, [1, 1, 1], 0.01)
    some[1].tensors["mean"][1] = 2.0**20 + 1
    made = fold(some, 5, 1.0)
    assert made.coarse == {"mean": FORMS[2].quantum}
    exact = np.mean([u.tensors["mean"].astype(np.float64) for u in some], axis=0)
    assert np.abs(made.sums().mean("mean") - exact).max() <= FORMS[2].quantum + np.spacing(np.float32(exact.max())) / 2
    assert np.abs(made.sums().mean("mean")[0] - exact[0]) < 1e-6


def test_what_fits_no_form_is_refused_and_leaves_the_sum_as_it_was() -> None:
    some = updates(5, [1, 1, 1], 0.01)
    two = bits(fold(some[:2], 5, 1.0))
    made = fold(some[:2], 5, 1.0)
    some[2].tensors["mean"][2] = 1e20  # the last number of the last floating-point tensor
    with pytest.raises(FixedPointError, match="larger than the sum leaves room for"):
        made.add(some[2], 1.0)
    assert bits(made) == two and made.sums().count == 2 and made.coarse == {}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_wherever_it_stands(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind numbers that are: nothing of what stands before it is added."""
    monkeypatch.setattr(fold_module, "_BLOCK", 2)
    some = updates(5, [1, 1, 1], 0.01)
    two = bits(fold(some[:2], 5, 1.0))
    made = fold(some[:2], 5, 1.0)
    some[2].tensors["w"][4, 1] = number
    with pytest.raises(FixedPointError, match="larger than the sum leaves room for"):
        made.add(some[2], 1.0)
    assert bits(made) == two


def test_no_site_is_in_a_sum_twice() -> None:
    some = updates(3, [1], 0.01)
    made = fold(some, 3, 1.0)
    with pytest.raises(ValueError, match="s00 is in the sum"):
        made.add(some[0], 1.0)


def test_the_forms_leave_room_for_every_site_at_its_largest() -> None:
    """In exact numbers; and one site more than there is room for is refused."""
    for form in FORMS:
        largest = Fraction(form.bound) * Fraction(2) ** form.fraction
        assert largest.denominator == 1 and MOST_SITES * largest < 2**63
    assert all(finer.bound * 2**16 == coarser.bound for finer, coarser in pairwise(FORMS))
    made = Fold(start(1), KINDS, 1.0, forms=[FixedPoint(2, 1.0, 50)])
    for update in updates(1, [1, 1], 0.01):
        made.add(update, 1.0)
    with pytest.raises(FixedPointError, match="more sites"):
        made.add(SiteUpdate("late", start(1), 1), 1.0)


def test_pieces_and_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = updates(23, [3, 8, 2], 3.0)
    whole = bits(fold(some, 23, 8.0))
    monkeypatch.setattr(fold_module, "_BLOCK", 7)
    made = Fold(start(23), KINDS, 8.0, tmp_path)
    for update in some:
        made.add(update, float(update.num_examples))
    assert bits(made) == whole
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sites", [2, 12])
def test_what_is_in_memory_does_not_grow_with_the_sites(tmp_path: Path, sites: int) -> None:
    """Beside the update that is being added: some pieces of it, and in the end the new weights."""
    before = {f"w{k}": np.zeros((100, 1000), np.float32) for k in range(10)}
    kinds, model = dict.fromkeys(before, "parameter"), sum(value.nbytes for value in before.values())
    made, update = Fold(before, kinds, 1.0, tmp_path), {name: value + np.float32(0.5) for name, value in before.items()}
    tracemalloc.start()
    try:
        for number in range(sites):
            made.add(SiteUpdate(f"s{number}", update, 1), 1.0)
        _, adding = tracemalloc.get_traced_memory()
        sums = made.sums()
        new = {name: sums.mean(name) for name in before}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all((value == 0.5).all() for value in new.values())
    assert adding < model and peak < 2 * model
