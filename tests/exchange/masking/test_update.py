"""Updates as words: the mean behind a masked sum is the weighted mean, and an algorithm makes the same of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from fed_diffmic.exchange.masking.driver import masked_sum
from fed_diffmic.exchange.masking.fixed_point import FixedPointError
from fed_diffmic.exchange.masking.update import UpdateForm
from server.words import masked_sums
from tests.exchange.masking.parties import SESSION, Parties

KINDS = {"w": "parameter", "b": "parameter", "mean": "buffer", "seen": "counter"}
NORM, MOST = 8.0, 500


def model(seed: int, counter: int = 3) -> Tensors:
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((3, 4)).astype(np.float32), "b": rng.standard_normal(()).astype(np.float32),
            "mean": rng.standard_normal(5), "seen": np.array(counter, np.int64)}  # fmt: skip


def form(bits: int = 64, **changed: Any) -> UpdateForm:
    return UpdateForm(
        **{"reference": model(0), "summands": 5, "norm": NORM, "most_weight": MOST, "bits": bits, **changed}
    )


def moved(seed: int, size: float = 0.5, counter: int = 7) -> Tensors:
    """The reference, moved a little."""
    step = model(seed, counter)
    return {n: v if n == "seen" else (model(0)[n] + size * step[n]).astype(v.dtype) for n, v in step.items()}


@pytest.mark.parametrize(("bits", "near"), [(32, 1e-6), (64, 1e-13)])
def test_the_mean_behind_a_masked_sum_is_the_weighted_mean(bits: int, near: float) -> None:
    """By numpy's own average; bit for bit the sum without masks."""
    shape, parties, weights = form(bits), Parties(5), [1, 7, 120, 500, 33]
    session = replace(SESSION, bits=bits, fraction=shape.numbers.fraction, length=shape.length)
    updates = [moved(seed) for seed in range(1, 6)]
    words = [shape.encode(update, weight) for update, weight in zip(updates, weights, strict=True)]
    total, _ = masked_sum(parties.coordinator(session), parties.sites, dict(zip(parties.names, words, strict=True)))
    assert total.tobytes() == np.sum(words, axis=0, dtype=total.dtype).tobytes()
    mean, weight = shape.mean(total, 5)
    assert weight == sum(weights)
    for name in ("w", "b", "mean"):
        exact = np.average([u[name].astype(np.float64) for u in updates], axis=0, weights=weights)
        assert mean[name].dtype == updates[0][name].dtype and mean[name].shape == updates[0][name].shape
        assert np.abs(mean[name] - exact).max() < max(near * MOST / np.mean(weights), 3e-7 * (name != "mean"))
    assert mean["seen"] == 7


@given(st.lists(st.integers(1, MOST), min_size=1, max_size=5), st.integers(0, 99))
def test_no_order_of_sites_changes_a_bit(weights: list[int], seed: int) -> None:
    shape = form(32)
    words = [shape.encode(moved(seed + i), weight) for i, weight in enumerate(weights)]
    one, two = (shape.mean(np.sum(some, axis=0, dtype="<u4"), len(weights))[0] for some in (words, words[::-1]))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_a_change_is_clipped_to_the_norm_at_the_site() -> None:
    shape = form()
    far = moved(1, size=100.0)
    mean, _ = shape.mean(shape.encode(far, MOST), 1)
    change, wanted = ({n: t[n].astype(np.float64) - model(0)[n] for n in ("w", "b", "mean")} for t in (mean, far))
    norm = np.sqrt(sum((value**2).sum() for value in change.values()))
    assert norm == pytest.approx(NORM, rel=1e-5)
    ratio = NORM / np.sqrt(sum((value**2).sum() for value in wanted.values()))
    assert np.allclose(change["w"], ratio * wanted["w"], atol=1e-5)
    at_the_bound = dict(model(0), mean=model(0)["mean"] + NORM / np.sqrt(5))
    assert np.allclose(shape.mean(shape.encode(at_the_bound, MOST), 1)[0]["mean"], at_the_bound["mean"], atol=1e-9)


@pytest.mark.parametrize("broken", [
    {"w": np.full((3, 4), np.nan, np.float32)}, {"w": np.full((3, 4), np.inf, np.float32)},
    {"w": np.zeros((4, 3), np.float32)}, {"w": np.zeros((3, 4))}, {"more": np.zeros(1)},
    {"seen": np.array(1 << 30)},
])  # fmt: skip
def test_what_is_no_update_is_refused(broken: dict[str, np.ndarray]) -> None:
    with pytest.raises(FixedPointError):
        form().encode({**model(1), **broken}, 1)


def test_weights_that_were_not_agreed_are_refused() -> None:
    shape = form()
    for weight in (0, -1, MOST + 1):
        with pytest.raises(FixedPointError):
            shape.encode(model(1), weight)
    with pytest.raises(FixedPointError):
        form(32, most_weight=2**31 // 5 + 1)
    words = shape.encode(model(1), MOST)
    for sites, total in ((2, words * 0), (6, words), (1, words * 2), (0, words), (1, words[:-1])):
        with pytest.raises(FixedPointError):
            shape.mean(np.asarray(total, "<u8"), sites)


def test_sites_that_would_write_it_another_way_have_another_digest() -> None:
    one = form().digest
    assert form().digest == one == form(reference=model(9)).digest
    others = [form(norm=9.0), form(most_weight=7), form(summands=4), form(32), form(count=9),
              form(reference={n: v for n, v in model(0).items() if n != "b"})]  # fmt: skip
    assert len({one, *(other.digest for other in others)}) == 7


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedbn", "ditto", "scaffold",
                                  "feddyn"])  # fmt: skip
def test_an_algorithm_makes_the_same_of_the_mean_as_of_the_updates(name: str) -> None:
    """As many copies of the mean as there are sites stand for them: two rounds, three of five sites in each."""
    algorithm = build_algorithm(StrategyConfig(name=name, feddyn_alpha=0.1), StageConfig())
    current = [model(0), model(0)]
    states = [algorithm.initial_state(model(0), KINDS) for _ in range(2)]
    for index in (1, 2):
        sent = [algorithm.broadcast(c, s) for c, s in zip(current, states, strict=True)]
        step = [moved(10 * index + k, 0.05) for k in range(3)]
        updates, weights = [], (20, 50, 5)
        for k, (tensors, weight) in enumerate(zip(step, weights, strict=True)):
            own = {n: (v + 0.01 * (k + 1)).astype(v.dtype) for n, v in sent[0].items()}
            updates.append(SiteUpdate(f"s{k}", tensors, weight, algorithm_tensors=own))
        shape = UpdateForm({**current[1], **sent[1]}, 5, 60.0, 50)
        words = [shape.encode({**u.tensors, **u.algorithm_tensors}, u.num_examples) for u in updates]
        mean, _ = shape.mean(np.sum(words, axis=0, dtype="<u8"), 3)
        tensors = {n: mean[n] for n in KINDS}
        stands = [SiteUpdate(f"s{k}", tensors, 1, algorithm_tensors={n: mean[n] for n in sent[1]}) for k in range(3)]
        for which, given_ in enumerate((updates, stands)):
            current[which], states[which] = algorithm.aggregate(current[which], KINDS, given_, states[which], index, 5)
        for n in KINDS:
            assert np.allclose(current[0][n], current[1][n], atol=2e-6), (index, n)
        assert states[0].keys() == states[1].keys()
        for n in states[0]:
            assert np.allclose(states[0][n], states[1][n], atol=2e-6), (index, n)


DIVIDED = frozenset({"w", "b"})


@pytest.mark.parametrize(("bits", "near"), [(32, 1e-4), (64, 1e-11)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_of_a_masked_sum_is_fednova_of_the_updates(bits: int, near: float, momentum: float) -> None:
    """The step of the algorithm by its other way, from updates one by one; the sum is that of the same plain words."""
    steps, weights = [1, 3, 40, 8, 25], [1, 7, 120, 500, 33]
    algorithm = build_algorithm(StrategyConfig(name="fednova"), StageConfig(optimizer="sgd", momentum=momentum))
    moves = [algorithm.moves(count) for count in steps]
    shape, parties = form(bits, divided=DIVIDED, most_moves=max(moves)), Parties(5)
    session = replace(SESSION, bits=bits, fraction=shape.numbers.fraction, length=shape.length)
    updates = [moved(seed) for seed in range(1, 6)]
    words = [shape.encode(u, w, moves=m) for u, w, m in zip(updates, weights, moves, strict=True)]
    total, _ = masked_sum(parties.coordinator(session), parties.sites, dict(zip(parties.names, words, strict=True)))
    assert total.tobytes() == np.sum(words, axis=0, dtype=total.dtype).tobytes()
    found = masked_sums(dict(zip(parties.names, weights, strict=True)), model(0), shape, total)
    plain = [
        SiteUpdate(name, tensors, weight, steps=count)
        for name, tensors, weight, count in zip(parties.names, updates, weights, steps, strict=True)
    ]
    exact, _ = algorithm.aggregate(model(0), KINDS, plain, {}, 1)
    new, _ = algorithm.from_sums(model(0), KINDS, found, {}, 1)
    tau = np.average(moves, weights=weights)
    assert found.moves == pytest.approx(tau, rel=near)
    for name in ("w", "b", "mean"):
        assert new[name].dtype == exact[name].dtype
        assert np.abs(new[name] - exact[name]).max() < max(near, 1e-6 * (name != "mean"))
        assert np.abs(new[name] - model(0)[name]).max() > 1e-3


def test_a_site_of_more_steps_than_agreed_gives_no_words_and_a_form_names_what_it_divides() -> None:
    shape = form(divided=DIVIDED, most_moves=4.0)
    for moves in (0.5, 4.1, float("nan")):
        with pytest.raises(FixedPointError, match="more steps"):
            shape.encode(moved(1), 7, moves=moves)
    others = (form(), form(divided=DIVIDED), form(divided=frozenset({"w"}), most_moves=4.0))
    assert len({shape.digest, *(other.digest for other in others)}) == 4
    for most in (0.5, float("inf"), float("nan")):
        with pytest.raises(FixedPointError):
            form(divided=DIVIDED, most_moves=most)
    total = shape.encode(moved(1), 7, moves=4.0)
    total[1] += total[1]
    with pytest.raises(FixedPointError, match="steps"):  # a sum whose sites together say more than all could
        shape.rates(total, 1)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("moves", [1.0, 7.0, 37.0, 2710.0])
def test_sites_of_one_step_or_of_the_most_alike_are_no_lie(moves: float, bits: int) -> None:
    """Their mean lies on the bound, to within float64: a quarter of such sums were refused in words of 64 bits."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        weights = [int(w) for w in rng.integers(1, MOST, 4)]
        for most in (moves, 2 * moves):  # at the upper bound, at the lower one, or between
            shape = form(bits, divided=DIVIDED, most_moves=most, most_weight=max(weights))
            total = np.sum([shape.encode(model(0), w, moves=moves) for w in weights], axis=0, dtype=shape.numbers.dtype)
            assert shape.rates(total, 4)[1] == pytest.approx(moves, rel=1e-12 if bits == 64 else 1e-5)
