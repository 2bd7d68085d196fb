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
    found = shared_patterns(now, before, "image")
    assert sorted(map(tuple, found.tolist())) == [(False, False), (False, True), (True, False)]


def test_a_renamed_patient_is_found_by_the_image_and_a_new_export_by_the_patient():
    before = [units((1, "a"))]
    assert shared_patterns(units((1, "renamed"), (5, "renamed")), before, "patient").tolist() == [[True]]
    assert shared_patterns(units((99, "a")), before, "patient").tolist() == [[True]]
    assert shared_patterns(units((99, "a")), before, "image").tolist() == [[True]]
    assert shared_patterns(units((99, "b")), before, "patient").tolist() == [[False]]


def test_nothing_shares_nothing():
    assert shared_patterns(units(), [units((1, "a"))], "image").shape == (0, 1)
    assert shared_patterns(units((1, "a")), [], "patient").shape == (1, 0)


PAIRS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abcdef")), min_size=1, max_size=12)


@given(PAIRS, PAIRS, st.sampled_from(["image", "patient"]))
def test_adding_images_never_hides_what_was_there(before, more, unit):
    """Whatever is added to a set, a unit that was in an earlier set still is."""
    earlier = [units(*before)]
    assert shared_patterns(units(*before, *more), earlier, unit).any()
