"""Faults seen: a claim below what the noise gives, a share sized for everybody, sampling counted in one direction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from opacus.accountants.analysis.rdp import compute_rdp

from fed_diffmic.privacy.accounting import ORDERS, Mechanism, as_unit, epsilon, merged
from fed_diffmic.privacy.distributed.accounting import cost, cost_of, share_for
from fed_diffmic.privacy.distributed.divergence import discrete_rdp, excess
from fed_diffmic.privacy.distributed.form import LEAST_DEVIATION, NoisyForm


def pmf_of_sum(shares: int, deviation: float) -> np.ndarray:
    """Exact up to float64, as far out as float64 goes."""
    reach = int(35 * deviation)
    one = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    total = one = one / one.sum()
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return total[total > 1e-200]


def shifted(noise: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The noise, and the noise that much further along, where both are."""
    return noise[shift:], noise[:-shift]


def divergence(p: np.ndarray, q: np.ndarray, order: float) -> float:
    return float(np.log(np.exp(order * np.log(p) + (1 - order) * np.log(q)).sum()) / (order - 1))


@pytest.mark.parametrize(("shares", "deviation"), [(2, 0.6), (3, 0.8), (5, 1.0), (4, 2.0)])
def test_the_sum_of_shares_is_no_further_from_itself_than_the_theorem_says(shares: int, deviation: float) -> None:
    noise = pmf_of_sum(shares, deviation)
    for shift, order in itertools.product((1, 2, 3), (1.5, 2, 3, 5)):
        found = divergence(*shifted(noise, shift), order)
        bound = order * shift**2 / (2 * shares * deviation**2)
        assert found <= bound + excess(shares, deviation) + 1e-9
        if deviation >= 1:  # and the bound is not an idle one
            assert found == pytest.approx(bound, rel=1e-3)


def test_the_excess_is_nothing_at_the_smallest_share_that_is_allowed() -> None:
    assert excess(1000, LEAST_DEVIATION) * 2**40 < 1e-250
    assert excess(3, 0.5) == pytest.approx(10 * (math.exp(-(math.pi**2) / 4) + math.exp(-(math.pi**2) / 3)))


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 0.8), (0.2, 1.5), (0.7, 4.0), (1.0, 2.0)])
def test_at_whole_orders_it_is_opacus_and_between_them_no_less(rate: float, sigma: float) -> None:
    found = discrete_rdp(rate, sigma, ORDERS)
    other = np.asarray(compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=list(ORDERS)))
    whole = np.array([order == int(order) for order in ORDERS])
    assert np.allclose(found[whole], other[whole], rtol=1e-6)
    assert (found >= other * (1 - 1e-9)).all()


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_sampled_sums_stay_below_it_in_both_directions(rate: float) -> None:
    shares, deviation, shift = 3, 2.0, 2
    noise, moved = shifted(pmf_of_sum(shares, deviation), shift)
    mixed = (1 - rate) * noise + rate * moved
    sigma = math.sqrt(shares) * deviation / shift
    orders = (1.5, 2, 3, 4.5, 8)
    bound = discrete_rdp(rate, sigma, orders)
    for order, most in zip(orders, bound, strict=True):
        forward, back = divergence(mixed, noise, order), divergence(noise, mixed, order)
        assert back <= forward + 1e-9  # the theorem's lemma
        assert forward <= most + 1e-9
        if order == int(order):
            assert forward == pytest.approx(most, rel=1e-4)


@pytest.mark.parametrize(("rate", "multiplier", "steps"), [(0.1, 1.0, 60), (0.02, 0.7, 200), (1.0, 8.0, 24)])
def test_the_claim_is_above_the_numerical_loss_distribution_and_not_far(
    rate: float, multiplier: float, steps: int
) -> None:
    from dp_accounting.pld import privacy_loss_distribution as pld

    form = NoisyForm({"a": (4,)}, 1.0, multiplier / math.sqrt(3), 0)
    claim = cost(form, rate, 2, steps).honest
    shift = math.isqrt(form.most_squared)  # one coordinate that holds all
    exact = pld.from_discrete_gaussian_mechanism(
        math.sqrt(3) * form.deviation, sensitivity=shift, sampling_prob=rate, value_discretization_interval=1e-3
    )
    least = exact.self_compose(steps).get_epsilon_for_delta(1e-5)
    said = epsilon([claim], 1e-5)
    assert least <= said <= 1.35 * least + 0.1


def test_noise_is_counted_for_the_sites_that_are_taken_to_be_honest_and_for_one() -> None:
    found = cost_of(0.5, 0.1, 3, 7)
    assert found.honest == Mechanism(0.1, 1.0, 7, discrete=True)
    assert found.alone == Mechanism(0.1, 0.5, 7, discrete=True)
    assert cost_of(0.5, 0.1, 0).honest == cost_of(0.5, 0.1, 0).alone


def test_a_share_is_sized_for_the_threshold_and_costs_what_was_asked() -> None:
    for honest in (0, 3):
        share = share_for(3.0, 1e-5, 0.05, 200, honest)
        spent = epsilon([cost_of(share, 0.05, honest, 200).honest], 1e-5)
        assert 2.97 < spent <= 3.0
    assert share_for(3.0, 1e-5, 0.05, 200, 3) == pytest.approx(share_for(3.0, 1e-5, 0.05, 200, 0) / 2, rel=2e-3)
    with pytest.raises(ValueError, match="no noise"):
        share_for(1e-9, 1e-5, 1.0, 100_000, 0)


def test_whole_and_real_noise_add_up_and_are_never_given_to_the_numerical_accountant() -> None:
    real, whole = Mechanism(0.1, 1.2, 20), Mechanism(0.1, 1.2, 20, discrete=True)
    assert len(merged([real, whole])) == 2
    both = epsilon([real, whole], 1e-5)
    assert max(epsilon([real], 1e-5), epsilon([whole], 1e-5)) < both
    assert epsilon([whole], 1e-5, "prv") == epsilon([whole], 1e-5)
    assert epsilon([real], 1e-5, "prv") < epsilon([real], 1e-5)


def test_another_unit_keeps_the_kind_of_noise_and_costs_more() -> None:
    image = Mechanism(0.1, 2.0, 20, discrete=True)
    patient = as_unit(image, "image", "patient", 3)
    pair = patient.dominating()
    assert (pair.noise_multiplier, pair.steps, pair.discrete) == (2.0 / 3, 20, True)
    assert pair.sample_rate == pytest.approx(1 - 0.9**3)
    assert epsilon([patient], 1e-5) > epsilon([image], 1e-5)
    assert as_unit(image, "patient", "image", 3) == Mechanism(1.0, 1.0, 20, discrete=True)
