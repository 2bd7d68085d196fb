"""What classes are called in words: one for each, or none."""

import pytest

from fed_diffmic.config.class_names import check_class_names
from fed_diffmic.config.compose import compose, to_yaml
from fed_diffmic.errors import ConfigError


@pytest.mark.parametrize("words", [["one"], ["one", "one"], ["one", "two", "three"], ["one", "x" * 81], ["a", "b\n"]])
def test_words_that_do_not_fit_the_classes_are_refused(words):
    with pytest.raises(ConfigError, match=r"dataset\.class_names"):
        check_class_names("dataset", words, ["a", "b"])


def test_none_and_one_for_each_are_taken_and_the_default_is_not_written():
    check_class_names("dataset", [], ["a", "b"])
    check_class_names("dataset", ["one", "two"], ["a", "b"])
    assert "class_names" not in to_yaml(compose(None, []))
    with pytest.raises(ConfigError, match="2 different texts"):
        compose(None, ["dataset.classes=[a,b]", "dataset.class_names=[one]"])
