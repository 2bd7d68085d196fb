"""Figures as words: exact counts and sums, and whatever a sum cannot be is refused.

Faults seen: a count that is rounded, a sum that wraps around, a figure that a site lacks and others fill in.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.exchange.masking.figures import BOUND, FigureForm, count_form, round_form, table_form
from fed_diffmic.exchange.masking.fixed_point import FixedPointError, add_words
from fed_diffmic.exchange.masking.session import MOST_SITES

FORM = round_form([0.25, 0.75], "auroc_macro")
SITE = st.tuples(st.integers(1, 10**6), st.integers(0, 10**12), st.floats(0, 1))


def total(form: FigureForm, sites: list[dict[str, float]]) -> np.ndarray:
    words = np.zeros(form.length, "<u8")
    for metrics in sites:
        add_words(words, form.encode(metrics))
    return words


@settings(max_examples=80, deadline=None)
@given(st.lists(SITE, min_size=1, max_size=MOST_SITES))
def test_counts_and_sums_of_nats_are_exact_and_means_nearly(sites: list[tuple[int, int, float]]) -> None:
    """Against fractions: a site's loss is a whole number of 2^-20 nats over its images, as its calibration makes it."""
    said = [{"num_examples": n, "loss": (q / 2**20) / n, "auroc_macro": a} for n, q, a in sites]
    found = FORM.decode(total(FORM, said), len(said))
    images = sum(n for n, _, _ in sites)
    assert found["num_examples"] == images
    assert found["loss"] == pytest.approx(float(Fraction(sum(q for _, q, _ in sites), 2**20) / images), rel=1e-12)
    mean = sum(Fraction(a) * n for n, _, a in sites) / images
    assert abs(found["auroc_macro"] - float(mean)) <= len(sites) * 2.0**-21 / images + 1e-12


def test_a_table_of_whole_quanta_is_summed_bit_for_bit() -> None:
    form = table_form([0.5, 0.5], (2, 3))
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 2**40, (2, 3)) / 2**20 for _ in range(5)]
    said = [{"num_examples": 7.0} | {f"nll/{i}/{j}": p[i, j] for i in range(2) for j in range(3)} for p in parts]
    found = form.decode(total(form, said), 5)
    assert found["num_examples"] == 35.0
    assert [found[n] for n in form.sums] == list(np.sum(parts, axis=0).ravel())


def test_the_largest_numbers_of_as_many_sites_as_there_can_be_do_not_wrap_around() -> None:
    form = table_form([0.5, 0.5], (1, 1))
    most = {"num_examples": BOUND, "nll/0/0": BOUND}
    assert form.decode(total(form, [most] * MOST_SITES), MOST_SITES)["nll/0/0"] == MOST_SITES * BOUND


def test_a_site_that_lacks_a_figure_gives_no_words() -> None:
    whole = {"num_examples": 3.0, "loss": 1.0, "auroc_macro": 0.5}
    for wrong in (
        {name: value for name, value in whole.items() if name != "auroc_macro"},
        {**whole, "num_examples": 0.0},
        {**whole, "loss": float("nan")},
        {**whole, "loss": 1e200},
        {**whole, "num_examples": 2.0 * BOUND},
    ):
        with pytest.raises(FixedPointError):
            FORM.encode(wrong)


@pytest.mark.parametrize(
    "words",
    [[1 << 20, 0, 0], [(2 << 20) + 1, 0, 0], [2 << 20, 0, 3 << 20], [2 << 20, 2**64 - 9, 0], [2 << 20, 0], [-5, 0, 0]],
    ids=["fewer images than sites", "part of an image", "above one", "below none", "short", "negative"],
)
def test_what_no_two_sites_can_have_said_is_refused(words: list[int]) -> None:
    with pytest.raises(FixedPointError):
        FORM.decode(np.array([w % 2**64 for w in words], "<u8"), 2)


def test_another_prior_figure_or_table_has_another_name() -> None:
    forms = [FORM, round_form([0.75, 0.25], "auroc_macro"), round_form([0.25, 0.75], "loss"), table_form([0.5], (1, 2))]
    assert len({form.digest for form in forms}) == len(forms) and forms[2].names == ("num_examples", "loss")


def test_counts_are_exact_over_pairs_of_images_too_and_what_is_not_said_is_none() -> None:
    form, images = count_form(["pairs", "cell"], {"scale": 1.0}), 100_000
    found = form.decode(total(form, [{"num_examples": images, "pairs": float(images**2)}] * 3), 3)
    assert found == {"num_examples": 3.0 * images, "pairs": 3.0 * images**2, "cell": 0.0}
    assert form.digest != count_form(["pairs", "cell"], {"scale": 2.0}).digest
