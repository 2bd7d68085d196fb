import dataclasses
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.config import simulation as config
from fed_diffmic.config.fields import allowed_text, option
from fed_diffmic.config.simulation import (
    DatasetConfig,
    ModelConfig,
    PartitionConfig,
    RunConfig,
    SimulateConfig,
    StageConfig,
    StrategyConfig,
)
from fed_diffmic.config.text import all_keys
from fed_diffmic.errors import ConfigError

GROUPS = [DatasetConfig, ModelConfig, StageConfig, StrategyConfig, PartitionConfig, RunConfig]


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_says_what_it_means_and_what_it_may_hold(group):
    for f in dataclasses.fields(group):
        assert len(f.metadata["doc"]) > 8, f.name
        assert allowed_text(f), f.name


@pytest.mark.parametrize("group", [*GROUPS, SimulateConfig])
def test_configurations_are_frozen(group):
    built = group()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(built, dataclasses.fields(group)[0].name, None)


def bounded_fields():
    for group in GROUPS:
        hints = typing.get_type_hints(group)
        for f in dataclasses.fields(group):
            for bound in ("ge", "gt", "le", "lt"):
                if f.metadata[bound] is not None:
                    yield group, f, bound, typing.get_origin(hints[f.name]) is list


@pytest.mark.parametrize(
    ("group", "f", "bound", "many"), [pytest.param(*c, id=f"{c[1].name}-{c[2]}") for c in bounded_fields()]
)
def test_every_bound_is_held_and_named(group, f, bound, many):
    limit = f.metadata[bound]
    outside = {"ge": limit - 1, "gt": limit, "le": limit + 1, "lt": limit}[bound]
    with pytest.raises(ConfigError) as caught:
        group(**{f.name: [outside] * 3 if many else outside})
    assert caught.value.key == f.name
    assert caught.value.exit_code == 2
    sign = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}[bound]
    assert f"{sign} {int(limit) if float(limit).is_integer() else limit}" in caught.value.allowed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ConfigError):
        StrategyConfig(mu=value)
    with pytest.raises(ConfigError):
        RunConfig(lr_scales=[1.0, value])


def test_choices_are_held_for_each_element():
    with pytest.raises(ConfigError, match="allowed: a list of any of local, pooled, plain"):
        SimulateConfig(baselines=["local", "lokal"])
    with pytest.raises(ConfigError, match="multiclass, ordinal, multilabel or null"):
        DatasetConfig(task="regression")


@given(st.integers(min_value=0, max_value=2**31 - 1))
def test_any_seed_in_range_is_kept(seed):
    assert SimulateConfig(seed=seed).seed == seed


def test_limits_are_written_out():
    seed = next(f for f in dataclasses.fields(SimulateConfig) if f.name == "seed")
    assert allowed_text(seed) == "a whole number >= 0 and < 2147483648"


def test_a_default_that_can_change_is_not_shared():
    assert DatasetConfig().mean is not DatasetConfig().mean


def test_names_that_others_rely_on():
    names = """seed run.dir dataset.root dataset.on_bad_image partition.alpha partition.sites strategy.mu
    stages.guidance.rounds stages.diffusion.rounds run.threads_per_site run.backend baselines"""
    assert set(names.split()) <= set(all_keys(SimulateConfig))
    choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(RunConfig)}
    assert choices["backend"] == ("inprocess", "ray")


def test_option_keeps_what_it_declares():
    f = option(1, "meaning", ge=0, path=True)
    assert (f.metadata["ge"], f.metadata["path"], f.default) == (0, True, 1)
    assert config.BASELINES == ("local", "pooled", "plain")
