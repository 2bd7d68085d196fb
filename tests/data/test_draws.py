"""Draws of a site's parts are those of scikit-learn, number for number, whatever the strata."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

from fed_diffmic.data.draws import shuffled, stratified

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 300), SEEDS)
def test_plain_draws_are_scikit_learns(data, count, seed):
    size = data.draw(st.integers(1, count - 1))
    theirs = [chosen for _, chosen in ShuffleSplit(5, test_size=size, random_state=seed).split(np.zeros(count))]
    assert np.array_equal(np.stack(list(shuffled(count, size, 5, seed))), np.stack(theirs))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.integers(2, 40), min_size=2, max_size=7), SEEDS)
def test_stratified_draws_are_scikit_learns(data, counts, seed):
    """Equal strata tie, and the tie is broken by the same lot; ``-1`` is the stratum of what is too few for its own."""
    strata = np.repeat(np.arange(len(counts)) - 1, counts)
    strata = strata[np.random.default_rng(seed).permutation(len(strata))]
    size = data.draw(st.integers(len(counts), len(strata) - len(counts)))
    splitter = StratifiedShuffleSplit(5, test_size=size, random_state=seed)
    theirs = [chosen for _, chosen in splitter.split(np.zeros(len(strata)), strata)]
    assert np.array_equal(np.stack(list(stratified(strata, size, 5, seed))), np.stack(theirs))


def test_sites_are_divided_without_scikit_learn():
    code = (
        "import sys, numpy as np; from fed_diffmic.data.splits import _candidates\n"
        "list(_candidates(np.arange(40) % 3, 9, 1)); list(_candidates(np.zeros(9), 2, 1))\n"
        "print(*(name for name in ('sklearn', 'scipy.stats', 'joblib') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == ""
