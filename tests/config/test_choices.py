"""What is chosen is composed once for all; what a user sets is laid over a copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import pytest

from fed_diffmic.config import choices
from fed_diffmic.config.choices import CLIENT, SERVER, SIMULATE, composed, laid_over
from fed_diffmic.config.compose import FOLDER, compose, compose_site
from fed_diffmic.config.fields import Checked, option
from fed_diffmic.errors import ConfigError


@dataclass(frozen=True)
class Inner(Checked):
    rate: float = option(1.0, "a rate", ge=0.0)
    names: list[str] = option(factory=lambda: ["a"], doc="some names")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    free: dict[str, Any] = field(default_factory=dict)
    text: str | None = "x"


def test_values_take_the_place_of_what_was_there_and_the_rest_stays() -> None:
    start = Outer(Inner(2.0), {"a": {"b": 1}})
    found = laid_over(start, {"inner": {"names": ["c", "d"]}, "text": None})
    assert found == Outer(Inner(2.0, ["c", "d"]), {"a": {"b": 1}}, None)
    assert laid_over(start, {"free": {"z": (2, 3)}}).free == {"z": [2, 3]}  # and is not mixed with it
    with pytest.raises(ConfigError, match="rate"):
        laid_over(start, {"inner": {"rate": -1.0}})


def mutable(config: Any) -> Iterator[Any]:
    """Every list and mapping of a configuration."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from mutable(value)
        elif isinstance(value, (list, dict)):
            yield value


def test_what_a_caller_changes_in_a_configuration_is_in_no_other() -> None:
    given: dict[str, Any] = {"inner": {"names": ["c"]}, "free": {"a": [1]}}
    start = Outer(Inner(), {"a": {"b": []}})
    for made in (laid_over(start, {}), laid_over(start, given)):
        for value in mutable(made):
            value.clear()
    assert start == Outer(Inner(), {"a": {"b": []}}) and given == {"inner": {"names": ["c"]}, "free": {"a": [1]}}
    first = compose(None, ["dataset=ham10000"])
    assert first.dataset.mean
    for value in mutable(first):
        value.clear()
    assert compose(None, ["dataset=ham10000"]).dataset.mean


@pytest.mark.parametrize("base", [SIMULATE, SERVER, CLIENT], ids=lambda base: base.name)
def test_the_shipped_default_with_nothing_said_is_what_hydra_makes(base: choices.Base) -> None:
    start = composed(FOLDER, base.name, ())
    assert type(start) is base.config_type and laid_over(start, {}) == start


def test_ranges_of_the_preset_hold_beside_what_a_site_says_of_others() -> None:
    preset = compose_site(None, ["policy=standard"]).policy.study.ranges
    own = compose_site(None, ["policy=standard", "policy.study.ranges={seed: [1, 2]}"]).policy.study.ranges
    assert own == {**preset, "seed": [1, 2]}
