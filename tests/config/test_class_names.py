"""What classes are called for people: of a configuration, in the signed specification, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fed_diffmic.config.compose import compose
from fed_diffmic.config.server import ConsortiumConfig, ServerConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.errors import ConfigError
from fed_diffmic.reporting.view import plain_names
from server.start import as_simulation

CLASSES = ("mel", "nv")


def spec_of(*settings: str, classes: tuple[str, ...] = CLASSES) -> RunSpec:
    config = compose(None, ["model=tiny", *settings])
    return make_spec(config, classes=classes, task="multiclass", run_id="r", arm="federated", device="cpu")


def test_names_go_with_the_specification_and_are_left_out_where_there_are_none() -> None:
    named = spec_of("dataset.class_names={nv: a naevus}")
    assert named.plain_names == {"nv": "a naevus"} and named.class_names == ("", "a naevus")
    assert RunSpec.from_json(named.to_json()) == named
    assert "class_names" not in spec_of().to_json()  # what was signed before they existed stays the same


def test_a_coordinator_gives_them_for_all_sites() -> None:
    config = ServerConfig(consortium=ConsortiumConfig(classes=list(CLASSES), class_names={"mel": "melanoma"}))
    assert as_simulation(config).dataset.class_names == {"mel": "melanoma"}


@pytest.mark.parametrize("names", ["{other: x}", "{mel: 3}", "{mel: [a]}"])
def test_a_name_of_no_class_or_no_text_is_refused(names: str) -> None:
    with pytest.raises(ConfigError, match="dataset.class_names"):
        spec_of(f"dataset.class_names={names}")


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a\nb", ""), ("a" * 1000, "")])
def test_a_specification_that_came_with_others_is_refused(names: tuple[str, ...]) -> None:
    text = replace(spec_of(), class_names=names).to_json()
    with pytest.raises(ConfigError, match="class_names"):
        RunSpec.from_json(text)


def test_what_the_run_says_stands_before_what_is_published() -> None:
    given: dict[str, Any] = {"nv": "our name", "other": "x"}
    known = plain_names(CLASSES, given)
    assert known["nv"] == "our name" and set(known) == set(CLASSES) and known["mel"] != "our name"
    assert plain_names(("a", "b")) == {} and plain_names(("a", "b"), {"a": "A"}) == {"a": "A"}
