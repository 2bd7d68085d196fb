"""Counts of few images or patients: none leaves or can be had by subtraction, and what is moved promises less."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.training import conformal
from fed_diffmic.training.few import moved, suppress, told
from fed_diffmic.training.sureness import counts_from

ROWS = st.dictionaries(st.integers(0, 200), st.integers(1, 6).map(float), min_size=1, max_size=20)


def test_moved_by_hand():
    row = {3: 1.0, 5: 2.0, 9: 4.0, 20: 1.0}
    assert moved(row, 3) == {20: 5.0, 5: 3.0}
    assert moved(row, 3, down=True) == {3: 3.0, 9: 5.0}
    assert moved({4: 1.0, 7: 1.0}, 3) == {7: 2.0} and moved({4: 1.0, 7: 1.0}, 3, down=True) == {4: 2.0}
    assert moved({}, 3) == {}
    assert moved({1: 3.0, 2: 1.0, 3: 3.0}, 3) == {3: 3.0, 2: 4.0}
    assert moved({1: 1.0, 2: 3.0}, 3) == {2: 4.0}, "what is left over moves up too"


@given(row=ROWS, least=st.integers(2, 8), down=st.booleans())
def test_no_cell_holds_few_and_every_image_moves_to_the_careful_side(row, least, down):
    found = moved(row, least, down=down)
    total = sum(row.values())
    assert sum(found.values()) == total
    assert total < least or min(found.values()) >= least
    for edge in range(201):
        before, after = (sum(n for cell, n in counts.items() if cell <= edge) for counts in (row, found))
        assert after >= before if down else after <= before


def flat(table, method="lac"):
    return {f"sets/{method}/{q}/{s}/{c}": float(table[q, s, c]) for q, s, c in np.argwhere(table)}


def test_a_class_of_few_images_is_not_told_apart_and_cannot_be_subtracted():
    table = np.zeros((1, 4, conformal.CELLS + 1), int)
    table[0, 0, 10], table[0, 0, 60], table[0, 1, 30], table[0, 2, 150] = 30, 2, 12, 3
    metrics = {"num_examples": 47.0, "sets/squares": 47.0, **flat(table)}
    found = told(metrics, 10, 0)
    assert found == {
        "num_examples": 47.0,
        "sets/squares": 47.0,
        "sets/lac/0/0/60": 32.0,
        "sets/lac/0/rest/150": 15.0,  # class 2 with class 1: the total tells nothing of class 2 alone
    }
    assert told(metrics, 1, 0) == metrics


def test_sets_of_what_is_told_cover_no_less_and_the_counts_can_be_read():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(4), 120)
    labels = np.minimum((p.cumsum(axis=1) > rng.random((120, 1))).argmax(axis=1), 3)
    labels[labels == 2] = np.where(np.arange((labels == 2).sum()) < 4, 2, 0)
    tables = {method: conformal.counts(p, labels, "multiclass", method) for method in conformal.METHODS}
    metrics = {"num_examples": 120.0, "sets/squares": 120.0}
    for method, table in tables.items():
        metrics |= flat(table, method)
    exact, careful = (counts_from(f, "multiclass", 4) for f in (metrics, told(metrics, 10, 0)))
    for method in conformal.METHODS:
        np.testing.assert_array_equal(exact.sets[method], tables[method])
        for level in conformal.LEVELS:
            before, after = (conformal.fit([c.sets[method]], method, level) for c in (exact, careful))
            assert after.overall >= before.overall
            assert all(a >= b for a, b in zip(after.by_state[0], before.by_state[0], strict=True))
        assert careful.sets[method][0, 2].sum() == 0 < careful.sets[method][0, 4].sum()


def test_a_measure_that_few_errors_would_tell_is_kept_back_and_any_other_looks_worse():
    metrics = {"unsure/entropy/0/50": 40.0, "unsure/entropy/0/80": 5.0, "unsure/entropy/1/70": 12.0}
    metrics["unsure/entropy/1/120"] = 3.0
    assert told(metrics, 10, 0) == {"unsure/entropy/0/80": 45.0, "unsure/entropy/1/70": 15.0}
    assert told({"unsure/spread/0/50": 40.0, "unsure/spread/1/70": 3.0}, 10, 0) == {}


def test_in_a_sum_a_measure_of_few_errors_tells_how_many_there_are_and_no_more():
    """Left out, the sum would be of the other sites alone; in their cells, they would be single images."""
    metrics = {"unsure/entropy/0/50": 40.0, "unsure/entropy/1/70": 3.0, "unsure/entropy/1/90": 1.0}
    assert told(metrics, 10, 0, summed=True) == {"unsure/entropy/0/50": 40.0, "unsure/entropy/1/0": 4.0}
    metrics = {"unsure/entropy/0/50": 4.0, "unsure/entropy/1/70": 30.0}
    assert told(metrics, 10, 0, summed=True) == {"unsure/entropy/0/200": 4.0, "unsure/entropy/1/70": 30.0}
    owners = {"owners/unsure/entropy/0": 4.0, "owners/unsure/entropy/1": 1.0}
    assert told(metrics | owners, 1, 3, summed=True) == {"unsure/entropy/0/50": 4.0, "unsure/entropy/1/0": 30.0}
    assert told(metrics | owners, 1, 1, summed=True) == metrics


def test_a_class_of_few_patients_is_not_told_apart_however_many_images_it_has():
    table = np.zeros((1, 4, conformal.CELLS + 1), int)
    table[0, 0, 30], table[0, 1, 171], table[0, 2, 60] = 48, 12, 20
    owners = {f"owners/sets/lac/0/{state}": n for state, n in enumerate((40.0, 1.0, 15.0))}
    metrics = {"num_examples": 80.0, **flat(table)}
    hidden = {"num_examples": 80.0, "sets/lac/0/0/30": 48.0, "sets/lac/0/rest/171": 12.0, "sets/lac/0/rest/60": 20.0}
    for least in (1, 10):
        assert told(metrics | owners, least, 5) == hidden, "class 1 is one patient's; the total less 2 would tell it"
    for least in (0, 1, 10):
        assert told(metrics | owners, least, 0) == metrics, "no number of patients leaves, whatever is asked for"
    whole = told(metrics, 10, 5)
    assert not any("/rest/" not in name for name in whole if name != "num_examples"), "of unknown patients: of none"


def test_a_measure_that_few_patients_errors_would_tell_is_kept_back():
    metrics = {"unsure/entropy/0/80": 45.0, "unsure/entropy/1/70": 15.0}
    owners = {"owners/unsure/entropy/0": 30.0, "owners/unsure/entropy/1": 1.0}
    assert told(metrics | owners, 10, 5) == {}
    assert told(metrics | owners | {"owners/unsure/entropy/1": 5.0}, 10, 5) == metrics


SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=8)


@given(sizes=SIZES, least=st.integers(0, 20), patients=st.integers(0, 10))
def test_what_is_hidden_of_few_patients_cannot_be_had_by_subtraction(sizes, least, patients):
    counts = [n for n, _ in sizes]
    owners = [min(sizes_) for sizes_ in sizes]
    shown = suppress(counts, least, owners, patients)
    hidden = [i for i, n in enumerate(shown) if n is None]
    for i, n in enumerate(shown):
        assert n in (None, counts[i]) and (not n or (n >= least and owners[i] >= patients))
    assert not hidden or any(counts[i] < least or owners[i] < patients for i in hidden), "nothing without need"
    if len([n for n in counts if n]) > len(hidden) > 0:
        assert len(hidden) > 1 and sum(counts[i] for i in hidden) >= least
        assert max(owners[i] for i in hidden) >= patients, "whoever has images in several of them is one patient"
