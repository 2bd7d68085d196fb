from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.data.site import Examples
from fed_diffmic.errors import LedgerError
from fed_diffmic.privacy.units import load_units, save_units, shared_patterns, unit_set

SECRET = b"s" * 32


def examples(images):
    """Examples from ``(key, group)`` pairs."""
    keys = np.array([key for key, _ in images], dtype=np.uint64)
    groups = np.array([group for _, group in images], dtype=str)
    return Examples(np.arange(len(keys)), np.zeros(len(keys), np.int64), groups, keys, None)


def units(*images, secret=SECRET):
    return unit_set(examples(images), secret)


def test_the_order_of_the_images_does_not_matter_and_the_secret_does():
    one = units((1, "a"), (2, "b"))
    assert one.name == units((2, "b"), (1, "a")).name != units((1, "a"), (2, "a")).name
    assert one.name != units((1, "a"), (2, "b"), secret=b"t" * 32).name
    assert not np.isin(one.images, units((1, "a"), secret=b"t" * 32).images).any()
    assert not np.isin(one.images, one.patients).any()
    with pytest.raises(ValueError, match="too short"):
        units((1, "a"), secret=b"short")


def test_a_number_stands_for_a_patient_or_an_image_and_never_for_both():
    one = units((7, "7"))
    assert one.images[0] != one.patients[0]


def test_the_patient_with_most_images_counts():
    assert units((1, "a"), (2, "b"), (3, "b")).most_images == 2
    assert units().most_images == 0


def test_a_set_is_read_as_it_was_written_and_a_changed_one_is_refused(tmp_path):
    one = units((1, "a"), (2, "b"), (3, "b"))
    path = save_units(tmp_path, one)
    assert path.stat().st_mode & 0o777 == 0o600
    again = load_units(tmp_path, one.name)
    assert np.array_equal(again.images, one.images) and np.array_equal(again.patients, one.patients)
    other = save_units(tmp_path, units((9, "z")))
    path.write_bytes(other.read_bytes())
    with pytest.raises(LedgerError, match="changed"):
        load_units(tmp_path, one.name)
    path.unlink()
    with pytest.raises(LedgerError, match="missing"):
        load_units(tmp_path, one.name)


def test_patterns_say_which_units_were_where():
    before = [units((1, "a"), (2, "b")), units((3, "c"))]
    now = units((1, "a"), (3, "c"), (4, "d"))
    found = shared_patterns(now, before)
    assert sorted(map(tuple, found.tolist())) == [(False, False), (False, True), (True, False)]


def test_a_renamed_patient_is_found_by_the_image_and_a_new_export_by_the_patient():
    before = [units((1, "a"))]
    assert shared_patterns(units((1, "renamed"), (5, "renamed")), before).tolist() == [[True]]
    assert shared_patterns(units((99, "a")), before).tolist() == [[True]]
    assert shared_patterns(units((99, "b")), before).tolist() == [[False]]


def test_a_patient_who_had_several_numbers_was_as_many_units():
    before = units((1, "scan-1"), (2, "scan-2"), (3, "scan-3"), (4, "b"))
    assert shared_patterns(units((1, "a"), (2, "a"), (3, "a"), (5, "c")), [before]).tolist() == [[0], [3]]
    assert shared_patterns(units((1, "scan-1"), (2, "scan-1")), [before]).tolist() == [[2]]
    # The other way round each of them was in the one unit.
    assert shared_patterns(before, [units((1, "a"), (2, "a"), (4, "b"))]).tolist() == [[0], [1]]


def test_who_shares_a_picture_with_somebody_else_was_not_somebody_else():
    blank, again = [pictures((n, "a", "blank"), (n + 1, "b", "blank"), (n + 2, "b", "x")) for n in (1, 11)]
    assert shared_patterns(again, [blank]).tolist() == [[1]]
    # Whether b left, or is a, cannot be known: both count.
    assert shared_patterns(pictures((11, "a", "blank")), [blank]).tolist() == [[2]]


def pictures(*images):
    """Units from ``(key, group, pixels)``."""
    plain = examples([(key, group) for key, group, _ in images])
    return unit_set(replace(plain, pixels=np.array([p for _, _, p in images], dtype=str)), SECRET)


def test_the_same_pixels_in_another_file_under_another_patient_are_found(tmp_path):
    before = pictures((1, "a", "x"), (2, "b", "y"))
    assert shared_patterns(pictures((9, "n", "x")), [before]).tolist() == [[True]]
    assert shared_patterns(pictures((9, "n", "z")), [before]).tolist() == [[False]]
    save_units(tmp_path, before)
    again = load_units(tmp_path, before.name)
    assert np.array_equal(again.pixels, before.pixels)
    assert before.name != units((1, "a"), (2, "b")).name and not np.isin(before.pixels, before.images).any()


def test_what_sets_in_between_link_is_one_unit():
    """Encoded anew in one run, renumbered in the next: a set of neither has both."""
    first, between = pictures((1, "a", "x"), (1, "a", "x")), pictures((2, "a", "x"))
    last = pictures((2, "n", "z"), (5, "m", "w"))
    assert sorted(map(tuple, shared_patterns(last, [first, between]).tolist())) == [(False, False), (True, True)]


def test_sets_of_before_there_were_pixels_are_linked_as_they_were():
    old = units((1, "a"), (2, "b"))
    assert old.pixels is None
    assert shared_patterns(pictures((1, "n", "x")), [old]).tolist() == [[True]]
    assert shared_patterns(pictures((9, "b", "x")), [old]).tolist() == [[True]]
    assert shared_patterns(pictures((9, "n", "x")), [old]).tolist() == [[False]]
    assert shared_patterns(pictures((9, "n", "x")), [old, pictures((1, "a", "x"))]).tolist() == [[True, True]]


def test_nothing_shares_nothing():
    assert shared_patterns(units(), [units((1, "a"))]).shape == (0, 1)
    assert shared_patterns(units((1, "a")), []).shape == (1, 0)


PAIRS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abcdef")), min_size=1, max_size=12)


@given(PAIRS, PAIRS, st.sampled_from(["image", "patient"]))
def test_adding_images_never_hides_what_was_there(before, more, unit):
    """Whatever is added to a set, a unit that was in an earlier set still is."""
    earlier = [units(*before)]
    assert shared_patterns(units(*before, *more), earlier).any()
