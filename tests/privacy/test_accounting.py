import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.privacy.accounting import TOLERANCE, Mechanism, as_unit, epsilon, merged, noise_multiplier_for

GRID = [(0.001, 0.6, 2000), (0.01, 0.8, 1000), (0.01, 1.1, 10_000), (0.05, 1.0, 300), (0.2, 3.0, 100), (1.0, 5.0, 20)]


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert epsilon([], 1e-5) == 0
    assert epsilon([Mechanism(0.1, 1.0, 0)], 1e-5, "prv") == 0
    assert epsilon([Mechanism(0.1, 0.0, 1)], 1e-5) == math.inf
    assert epsilon([Mechanism(0.1, 0.0, 1)], 1e-5, "prv") == math.inf


@pytest.mark.parametrize(("rate", "sigma", "steps"), GRID)
def test_renyi_agrees_with_opacus_and_with_dp_accounting(rate, sigma, steps):
    """Opacus's own accountant with our orders: the same; dp-accounting's Renyi bound: within 2 per cent."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant
    from opacus.accountants import RDPAccountant

    from fed_diffmic.privacy.accounting import ORDERS

    ours = epsilon([Mechanism(rate, sigma, steps)], 1e-5)
    theirs = RDPAccountant()
    theirs.history = [(sigma, rate, steps)]
    assert ours == pytest.approx(theirs.get_epsilon(1e-5, alphas=list(ORDERS)), rel=1e-12)
    other = RdpAccountant(orders=list(ORDERS))
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    other.compose(dp_event.SelfComposedDpEvent(event, steps))
    assert ours == pytest.approx(other.get_epsilon(1e-5), rel=0.02)


@pytest.mark.parametrize(("rate", "sigma", "steps"), GRID)
def test_the_tight_accountants_agree_and_renyi_lies_above(rate, sigma, steps):
    """Opacus's PRV within 0.02 of dp-accounting's PLD, never above Renyi."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    tight = epsilon([Mechanism(rate, sigma, steps)], 1e-5, "prv")
    other = PLDAccountant(value_discretization_interval=1e-3)
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    other.compose(dp_event.SelfComposedDpEvent(event, steps))
    assert tight == pytest.approx(other.get_epsilon(1e-5), abs=0.03)
    assert tight <= epsilon([Mechanism(rate, sigma, steps)], 1e-5)


def test_unlike_mechanisms_compose_in_any_order():
    parts = [Mechanism(0.01, 1.0, 100), Mechanism(1.0, 20.0, 1), Mechanism(0.01, 1.0, 50)]
    assert merged(parts) == (Mechanism(0.01, 1.0, 150), Mechanism(1.0, 20.0, 1))
    assert epsilon(parts, 1e-5) == epsilon(reversed(parts), 1e-5) > epsilon(parts[:2], 1e-5)


@settings(max_examples=20)
@given(st.floats(0.001, 1), st.floats(0.3, 20), st.integers(1, 1000), st.integers(1, 500))
def test_more_steps_never_cost_less(rate, sigma, steps, more):
    assert epsilon([Mechanism(rate, sigma, steps + more)], 1e-5) >= epsilon([Mechanism(rate, sigma, steps)], 1e-5)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_the_noise_found_meets_the_target_and_hardly_more(accountant):
    fixed = [Mechanism(1.0, 20.0, 1)]
    sigma = noise_multiplier_for(3.0, 1e-5, [(0.02, 400), (0.02, 100)], fixed, accountant)
    assert epsilon([*fixed, Mechanism(0.02, sigma, 500)], 1e-5, accountant) <= 3.0
    less = sigma / (1 + 2 * TOLERANCE)
    assert epsilon([*fixed, Mechanism(0.02, less, 500)], 1e-5, accountant) > 3.0 - (0.02 if accountant == "prv" else 0)


def test_a_target_that_is_spent_already_has_no_noise():
    with pytest.raises(ValueError, match="spent before"):
        noise_multiplier_for(0.5, 1e-5, [(0.1, 10)], [Mechanism(1.0, 1.0, 1)])


def test_a_patient_costs_more_than_an_image_and_one_image_the_same():
    step = Mechanism(0.01, 2.0, 100)
    patient, same = as_unit(step, "image", "patient", 4), as_unit(step, "image", "patient", 1)
    assert (patient.sample_rate, patient.noise_multiplier, patient.steps) == (pytest.approx(1 - 0.99**4), 0.5, 100)
    assert (same.sample_rate, same.noise_multiplier, same.steps) == (pytest.approx(0.01), 2.0, 100)
    assert as_unit(Mechanism(1.0, 2.0), "image", "patient", 3).sample_rate == 1.0
    assert as_unit(step, "image", "image", 4) is step
    assert as_unit(step, "patient", "image", 4) == Mechanism(1.0, 1.0, 100)
    with pytest.raises(ValueError, match="unit"):
        as_unit(step, "crop", "image", 1)


def test_a_patients_bound_holds_for_the_true_mixture():
    """Hockey-stick divergence of the exact mixture over how many images are drawn, against the stated mechanism."""
    import numpy as np
    from scipy.stats import binom, norm

    q, sigma, k = 0.2, 2.0, 3
    x = np.linspace(-60, 60, 600_001)
    weights = binom.pmf(range(k + 1), k, q)
    true = sum(w * norm.pdf(x, j, sigma) for j, w in enumerate(weights))
    stated = as_unit(Mechanism(q, sigma), "image", "patient", k)
    bound = (1 - stated.sample_rate) * norm.pdf(x, 0, sigma) + stated.sample_rate * norm.pdf(x, k, sigma)
    none = norm.pdf(x, 0, sigma)
    for level in (0.0, 0.1, 0.5, 1.0, 2.0):
        for p, r in ((true, bound), (none, none)):
            forward = np.trapezoid(np.maximum(p - math.exp(level) * none, 0), x)
            limit = np.trapezoid(np.maximum(r - math.exp(level) * none, 0), x)
            assert forward <= limit + 1e-9
        backward = np.trapezoid(np.maximum(none - math.exp(level) * true, 0), x)
        assert backward <= np.trapezoid(np.maximum(none - math.exp(level) * bound, 0), x) + 1e-9


@pytest.mark.parametrize("values", [(0, 1, 1), (1.1, 1, 1), (0.5, -1, 1), (0.5, math.inf, 1), (0.5, 1, -1)])
def test_a_mechanism_out_of_range_is_refused(values):
    with pytest.raises(ValueError, match="needs"):
        Mechanism(*values)
