"""The registry of layouts."""

import pytest

from fed_diffmic.config.compose import group_options
from fed_diffmic.data.datasets import dataset_names, get_dataset, register_dataset
from fed_diffmic.errors import ConfigError


def test_every_layout_of_the_configuration_is_registered_and_no_other():
    assert group_options("dataset") == list(dataset_names())
    assert len(dataset_names()) == 6


def test_a_name_taken_twice_is_refused():
    dataset_names()
    with pytest.raises(ValueError, match="'table'"):
        register_dataset("table")(lambda cfg, findings: None)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="ham10000"):
        get_dataset("mnist")
